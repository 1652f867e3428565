"""The methods that ``fastssl train`` knows, by name."""

from fastssl.train import Recipe
from fastssl.train.recipes_image import IMAGE_RECIPES
from fastssl.train.recipes_masked import MASKED_RECIPES
from fastssl.train.recipes_momentum import MOMENTUM_RECIPES
from fastssl.train.recipes_text import TEXT_RECIPES

RECIPES: dict[str, Recipe] = {**IMAGE_RECIPES, **MOMENTUM_RECIPES, **MASKED_RECIPES, **TEXT_RECIPES}
