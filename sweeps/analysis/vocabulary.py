"""Display names: how the report, the W&B mirror and messages name tasks, networks, controls, experiments, measures.

Keys are the identifiers in the stored tables. Titles start a heading or a table row; nouns stand inside a sentence.
"""

from __future__ import annotations

from probing.diffusion.variants import is_plain, kind, own_seed

TASK_TITLES = {"saliency": "Salient object", "depth": "Depth"}
TASK_NOUNS = {"saliency": "the salient object", "depth": "depth"}
STEP_AXIS = "denoising step"

VARIANT_TITLES = {
    "trained": "trained",
    "random": "randomised",
    "random_forced": "randomised, trained inputs",
    "reinit": "freshly initialised",
    "same_prompt_other_seed": "other image, same prompt",
}
BASELINE_NOUNS = {
    "floor": "the floor",
    "surface": "the surface (latents only, 5 x 5 patches)",
    "surface_point": "the surface (latents only, one patch)",
    "surface_rgb": "the decoded image (colours of the clean estimate around a patch)",
    "position": "position alone",
    "vae": "the VAE’s self-attention",
    "random": "the randomised network",
    "random_forced": "the randomised network on the trained network’s inputs",
    "reinit": "the freshly initialised network",
    "same_prompt_other_seed": "another image of the same prompt (what the text alone gives)",
}
PROBE_CONTROL_TITLES = {
    "none": "Task",
    "shuffled": "shuffled: each image’s labels permuted over its patches",
    "permuted": "permuted: labels permuted over the patches of all images",
    "other_image": "other image: labels of another image",
    "position": "position: a learned map, no activations",
    "position_activation": "position and activations: a learned map beside the channels",
    "surface_point": "surface, one patch: noisy and clean latent with row and column, no activations",
    "surface": "surface, 5 x 5 patches: the same for a neighbourhood",
    "surface_rgb": "surface, decoded image: colours of the clean estimate around a patch with row and column",
}
FLOOR_NOUNS = {"saliency": "mean mask or all foreground", "depth": "mean depth map"}
"""what the stored floor of a task is: the better of these on the test images"""
POSITION_FLOOR = BASELINE_NOUNS["position"]

KIND_NOUNS = {
    "attention": "the self-attention output projections",
    "cross": "the cross-attention output projections",
    "mlp": "the feed-forward layers",
    "residual": "the transformer blocks (the residual stream)",
}
"""kinds of sites"""

EXPERIMENT_TITLES = {
    "grid": "main grid",
    "vae": "VAE self-attention",
    "conv": "convolutional sites",
    "smoothness": "smoothness loss",
    "emergence": "emergence",
    "transfer": "transfer between steps",
    "converged": "converged references",
    "truth": "renders with known truth",
    "interventions": "main edit",
    "steps": "number of edited steps",
    "sides": "group of edited sites",
    "dose": "optimiser iterations",
    "guidance": "guidance scale",
    "gain": "gain of the edit",
    "second_object": "second object",
    "animation": "moving object",
    "transplant": "activation patching",
}
LATENT_TITLES = {"x0": "clean estimate, decoded", "xt": "noisy latent, decoded"}
LABELLER_TITLES = {"x0": "labeller on the clean estimate", "xt": "labeller on the noisy latent"}

DIRECTION_TITLES = {"weights": "probe weights", "pattern": "pattern", "mean_difference": "mean difference"}
"""what the edits of a run move activations along"""
DIRECTION_NOUNS = {
    "weights": "along the probe’s weights (the paper’s edit)",
    "pattern": "along the probe’s pattern",
    "mean_difference": "along the difference of class means",
}
SCALE_TITLES = {
    "reading": "of the paper’s reading",
    "gap": "of the natural gap",
    "rms": "of the activation RMS",
    "label": "of the natural change for the change of the label",
}
"""units of an edit's gain"""
EDIT_CONTROL_TITLES = {
    "edit": "edit",
    "none": "no edit",
    "random_direction": "random direction",
    "random_probe": "probe of randomised network",
    "shuffled_probe": "probe of labels shuffled inside images",
    "permuted_probe": "probe of labels permuted over all images",
    "mirror_target": "opposite move",
    "decoy_place": "same edit, other place",
    "late_steps": "late steps only",
    "rank_one": "along the probe",
    "natural": "along the covariance",
}
OTHER_LABEL_TITLES = {
    "mirror": "the opposite move’s label",
    "original": "the unedited label",
    "constant": "a constant map",
    "others": "the other moves’ labels",
}
"""labels that an edited image is also scored against, beside the requested one"""

CLAIM_NOUNS = {
    "linear-depth": "Depth is linear",
    "linear-saliency": "Objects are linear",
    "early": "Read early",
    "not-vae": "Not in the VAE",
    "causal": "Used by the model",
}
"""the five claims in a few words"""
MEASURE_TITLES = {
    "ap": "Average precision", "dice": "Dice", "dice_threshold": "Dice, threshold of train",
    "dice_background": "Dice of the background", "crossentropy": "Cross-entropy",
    "rmse": "RMSE", "rmse_object": "RMSE, object", "rmse_background": "RMSE, background", "skill": "Skill",
    "rmse_aligned": "RMSE, aligned", "spearman": "Spearman", "spearman_residual": "Spearman of residuals",
    "pearson": "Pearson",
}  # fmt: skip
"""columns of results/probes and results/images"""
MEASURE_NOTES = {
    "ap": "Average precision: area under precision against recall over all thresholds, higher is better.",
    "dice_threshold": "Threshold of train: the cut with the best mean Dice on training images, in place of the argmax.",
    "dice_background": "Dice of the background: Dice of everything that is not the object.",
    "crossentropy": "Cross-entropy: the training loss, lower is better.",
    "rmse_object": "Object and background: over the pixels of the salient object alone, and over all others.",
    "spearman_residual": "Of residuals: with the training images’ mean depth map subtracted from prediction and label.",
    "skill": "Skill: 1 − squared error / squared error of the training images’ mean depth map; 0 is no better than it.",
    "rmse_aligned": "Aligned: after the best scale and shift of each image.",
    "spearman": "Spearman and Pearson: correlations over the pixels of an image.",
}
EDIT_MEASURE_TITLES = {
    "area_before": "Area before", "area_target": "Requested area", "area_after": "Area after",
    "floor": "Constant map", "slope": "Slope", "shift_share": "Shift reached", "pearson_after": "Pearson after",
    "own_scale_before": "Own scale, before", "own_scale_after": "Own scale, after",
    "aligned_before": "Aligned, before", "aligned_after": "Aligned, after",
}  # fmt: skip
"""medians of results/interventions over the whole image"""
EDIT_INSIDE_TITLES = {
    "readout_before": "Probe output before", "readout_after": "Probe output after",
    "readout_spearman": "Probe output rank corr.", "readout_least": "Worst probe output", "edit_norm": "Edit size",
    "departure_after": "Activation RMS z-score", "outside_change": "Pixels outside",
    "outside_label": "Label outside", "content_kept": "Content kept",
}  # fmt: skip
"""medians of results/interventions inside the network and outside the object"""


def variant_title(variant: str) -> str:
    """Title of a variant; `random@101` gives `randomised, seed 101`."""
    title = VARIANT_TITLES.get(kind(variant), kind(variant))
    return title if is_plain(variant) else f"{title}, seed {own_seed(variant, 0)}"


def baseline_noun(name: str) -> str:
    """Noun for a baseline: a variant or a probe control."""
    return BASELINE_NOUNS.get(name, plain(name))


def plain(name: str) -> str:
    """An identifier without a title, as words."""
    return name.replace("_", " ")
