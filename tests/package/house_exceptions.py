"""What the tests of the house let pass, each with its reason. An entry that nothing needs any more fails too."""

#: Import circles.
CIRCLES: dict[str, str] = {}

#: Files over 400 lines.
LONG_FILES: dict[str, str] = {}

#: Functions over 60 lines.
LONG_FUNCTIONS: dict[str, str] = {}

#: Functions of more than 12 parameters.
MANY_PARAMETERS: dict[str, str] = {
    "fastssl/loss/info_nce.py: info_nce": "a drop-in for info-nce-pytorch, with keywords of SimCSE and CLIP",
    "tests/fuzz/loss_truths.py: info_nce": "the arguments of the function that it checks",
    "fastssl/compat/timm.py: ModelEmaV3.__init__": "a drop-in for the class of timm, with its arguments",
    "fastssl/methods/dino.py: DINO.__init__": "the settings of the paper and of its code, which callers give by keyword",
    "fastssl/methods/moco.py: MoCo.__init__": "the settings of the paper and of the MoCo repository, which callers give by keyword",
}

#: Modules that import a reference.
REFERENCES: dict[str, str] = {}

#: Imports of an upper layer by a lower one.
LAYERS: dict[str, str] = {}

#: Files that comments, docstrings and pages name, and that nothing here has or writes.
FILES: dict[str, str] = {
    "CASES.json": "a placeholder of a usage line",
    "RESULT.json": "a placeholder of a usage line",
    "DIR/tune.json": "a placeholder of a usage line",
    "DIR/tune.md": "a placeholder of a usage line",
    "DIR/tuned/similarity_sm90.py": "a placeholder of a usage line",
    "logs/build.txt": "written by a run on a GPU",
    "logs/info.txt": "written by a run on a GPU",
    "logs/tests.txt": "written by a run on a GPU",
    "logs/bench_0_from_*.txt": "written by a run on a GPU",
    "tune/tuned/*.py": "written by the tuner",
    "test_dist__gather__losses.py": "a file of lightly",
    "test_modeling_common.py": "a file of transformers",
    "test_cmnrl.py": "a file of sentence-transformers",
    "val/val_annotations.txt": "a file of Tiny ImageNet",
}

#: Names in backquotes that no code here has.
NAMES: dict[str, str] = {
    "_lerp_": "a function of timm",
    "apply_update_": "a method of timm",
    "apply_update_no_buffers_": "a method of timm",
    "add_contrastive_loss": "a function of google-research/simclr",
    "byol_pytorch.byol_pytorch": "a library that is not installed",
    "cal_inf_loss": "a function of inf_cl",
    "cal_ring_loss": "a function of inf_cl",
    "enable_input_require_grads": "a method of transformers",
    "fused_siglip_plus_loss": "a function of siglip-kernel",
    "graph.register_generator_state": "a method of torch.cuda.CUDAGraph",
    "lse_i": "a name of an equation",
    "s_ij": "a name of an equation",
    "mask_prob": "an argument of fairseq",
    "once_differentiable": "a decorator of torch.autograd.function",
    "seg_test": "a folder of a data set",
}

#: Private words.
WORDS: dict[str, str] = {}
