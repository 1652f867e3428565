"""The paper of each method that ``fastssl train`` knows, for the report of a run."""

from dataclasses import dataclass

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Paper:
    """A method by the name that its authors gave it, and where it was published first.

    Args:
        name: how people call the method.
        title: of the paper.
        authors: the first author and the year, such as "Chen et al. 2020".
        link: an https address.
    """

    name: str
    title: str
    authors: str
    link: str


def arxiv(name: str, title: str, authors: str, number: str) -> Paper:
    return Paper(name, title, authors, ARXIV + number)


PAPERS = {
    "simclr": arxiv(
        "SimCLR", "A Simple Framework for Contrastive Learning of Visual Representations", "Chen et al. 2020", "2002.05709"
    ),
    "supcon": arxiv("SupCon", "Supervised Contrastive Learning", "Khosla et al. 2020", "2004.11362"),
    "instdisc": arxiv(
        "Instance discrimination",
        "Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination",
        "Wu et al. 2018",
        "1805.01978",
    ),
    "cmc": arxiv("CMC", "Contrastive Multiview Coding", "Tian et al. 2020", "1906.05849"),
    "nnclr": arxiv(
        "NNCLR",
        "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations",
        "Dwibedi et al. 2021",
        "2104.14548",
    ),
    "cpc": arxiv("CPC", "Representation Learning with Contrastive Predictive Coding", "van den Oord et al. 2018", "1807.03748"),
    "moco": arxiv("MoCo", "Momentum Contrast for Unsupervised Visual Representation Learning", "He et al. 2020", "1911.05722"),
    "moco_v3": arxiv(
        "MoCo v3", "An Empirical Study of Training Self-Supervised Vision Transformers", "Chen et al. 2021", "2104.02057"
    ),
    "byol": arxiv(
        "BYOL", "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", "Grill et al. 2020", "2006.07733"
    ),
    "simsiam": arxiv("SimSiam", "Exploring Simple Siamese Representation Learning", "Chen and He 2021", "2011.10566"),
    "mean_teacher": arxiv(
        "Mean teacher",
        "Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep learning results",
        "Tarvainen and Valpola 2017",
        "1703.01780",
    ),
    "entropy_minimization": Paper(
        "Entropy minimisation",
        "Semi-supervised Learning by Entropy Minimization",
        "Grandvalet and Bengio 2004",
        "https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization",
    ),
    "fixmatch": arxiv(
        "FixMatch",
        "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
        "Sohn et al. 2020",
        "2001.07685",
    ),
    "noisy_student": arxiv(
        "Noisy student", "Self-training with Noisy Student improves ImageNet classification", "Xie et al. 2020", "1911.04252"
    ),
    "dino": arxiv("DINO", "Emerging Properties in Self-Supervised Vision Transformers", "Caron et al. 2021", "2104.14294"),
    "ibot": arxiv("iBOT", "iBOT: Image BERT Pre-Training with Online Tokenizer", "Zhou et al. 2022", "2111.07832"),
    "swav": arxiv(
        "SwAV", "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", "Caron et al. 2020", "2006.09882"
    ),
    "barlow_twins": arxiv(
        "Barlow Twins", "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", "Zbontar et al. 2021", "2103.03230"
    ),
    "vicreg": arxiv(
        "VICReg",
        "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        "Bardes et al. 2022",
        "2105.04906",
    ),
    "lejepa": arxiv(
        "LeJEPA",
        "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
        "Balestriero and LeCun 2025",
        "2511.08544",
    ),
    "deepcluster": arxiv(
        "DeepCluster", "Deep Clustering for Unsupervised Learning of Visual Features", "Caron et al. 2018", "1807.05520"
    ),
    "mae": arxiv("MAE", "Masked Autoencoders Are Scalable Vision Learners", "He et al. 2022", "2111.06377"),
    "simmim": arxiv("SimMIM", "SimMIM: A Simple Framework for Masked Image Modeling", "Xie et al. 2022", "2111.09886"),
    "inpainting": arxiv("Inpainting", "Context Encoders: Feature Learning by Inpainting", "Pathak et al. 2016", "1604.07379"),
    "colorization": arxiv("Colorization", "Colorful Image Colorization", "Zhang et al. 2016", "1603.08511"),
    "split_brain": arxiv(
        "Split-brain autoencoder",
        "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction",
        "Zhang et al. 2017",
        "1611.09842",
    ),
    "image_gpt": Paper(
        "Image GPT",
        "Generative Pretraining from Pixels",
        "Chen et al. 2020",
        "https://proceedings.mlr.press/v119/chen20s.html",
    ),
    "dim": arxiv(
        "Deep InfoMax",
        "Learning deep representations by mutual information estimation and maximization",
        "Hjelm et al. 2019",
        "1808.06670",
    ),
    "amdim": arxiv(
        "AMDIM", "Learning Representations by Maximizing Mutual Information Across Views", "Bachman et al. 2019", "1906.00910"
    ),
    "ijepa": arxiv(
        "I-JEPA",
        "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
        "Assran et al. 2023",
        "2301.08243",
    ),
    "rotnet": arxiv(
        "RotNet", "Unsupervised Representation Learning by Predicting Image Rotations", "Gidaris et al. 2018", "1803.07728"
    ),
    "relative_position": arxiv(
        "Relative position",
        "Unsupervised Visual Representation Learning by Context Prediction",
        "Doersch et al. 2015",
        "1505.05192",
    ),
    "jigsaw": arxiv(
        "Jigsaw",
        "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
        "Noroozi and Favaro 2016",
        "1603.09246",
    ),
    "exemplar": arxiv(
        "Exemplar networks",
        "Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks",
        "Dosovitskiy et al. 2014",
        "1406.6909",
    ),
    "pirl": arxiv(
        "PIRL", "Self-Supervised Learning of Pretext-Invariant Representations", "Misra and van der Maaten 2020", "1912.01991"
    ),
    "clip": arxiv(
        "CLIP", "Learning Transferable Visual Models From Natural Language Supervision", "Radford et al. 2021", "2103.00020"
    ),
    "siglip": arxiv("SigLIP", "Sigmoid Loss for Language Image Pre-Training", "Zhai et al. 2023", "2303.15343"),
    "simcse": arxiv("SimCSE", "SimCSE: Simple Contrastive Learning of Sentence Embeddings", "Gao et al. 2021", "2104.08821"),
    "bert": arxiv(
        "BERT",
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "Devlin et al. 2019",
        "1810.04805",
    ),
    "word2vec": arxiv(
        "word2vec", "Efficient Estimation of Word Representations in Vector Space", "Mikolov et al. 2013", "1301.3781"
    ),
    "frame_order": arxiv(
        "Frame order",
        "Shuffle and Learn: Unsupervised Learning using Temporal Order Verification",
        "Misra et al. 2016",
        "1603.08561",
    ),
    "gpt": Paper(
        "GPT",
        "Language Models are Unsupervised Multitask Learners",
        "Radford et al. 2019",
        "https://github.com/openai/gpt-2",
    ),
    "t5": arxiv(
        "T5",
        "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
        "Raffel et al. 2020",
        "1910.10683",
    ),
    "cola": arxiv("COLA", "Contrastive Learning of General-Purpose Audio Representations", "Saeed et al. 2021", "2010.10915"),
    "multi_format": arxiv(
        "Multi-format contrast",
        "Multi-Format Contrastive Learning of Audio Representations",
        "Wang and van den Oord 2021",
        "2103.06508",
    ),
    "audio_mae": arxiv("AudioMAE", "Masked Autoencoders that Listen", "Huang et al. 2022", "2207.06405"),
    "cpc_sound": arxiv(
        "CPC", "Representation Learning with Contrastive Predictive Coding", "van den Oord et al. 2018", "1807.03748"
    ),
    "next_frame": arxiv(
        "Next frame", "Unsupervised Learning of Video Representations using LSTMs", "Srivastava et al. 2015", "1502.04681"
    ),
    "color_tracking": arxiv("Tracking by colour", "Tracking Emerges by Colorizing Videos", "Vondrick et al. 2018", "1806.09594"),
    "time_contrastive": arxiv(
        "Time-contrastive network",
        "Time-Contrastive Networks: Self-Supervised Learning from Video",
        "Sermanet et al. 2018",
        "1704.06888",
    ),
    "track_triplets": arxiv(
        "Track triplets", "Unsupervised Learning of Visual Representations using Videos", "Wang and Gupta 2015", "1505.00687"
    ),
    "wav2vec2": arxiv(
        "wav2vec 2.0",
        "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations",
        "Baevski et al. 2020",
        "2006.11477",
    ),
}
