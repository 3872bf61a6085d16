"""Tables of LDM_correspondences: Table 1 of its paper, and what each part of it does on validation pairs."""

from __future__ import annotations

from script.tables.rows import Rows, Table, World, list_rows

JUDGED = {"cub": "bbox_width", "pfwillow": "padded_kps", "spair": "src_bbox"}  # its authors' DATASET.THRESHOLD
REPORTED = {
    "CHM, strongly supervised": "chm",
    "VAT, strongly supervised": "vat",
    "CATs++, strongly supervised": "cats_pp",
    "PMD, weakly supervised": "pmd",
    "PSCNet-SE, weakly supervised": "pscnet",
    "VGG+MLS": "vgg_mls",
    "DINO+MLS": "dino_mls",
    "DINO+NN": "dino_nn",
    "ASIC": "asic",
}
FEW = ("TEST.SPLIT", "val", "DATASET.PAIRS", "10")  # of each category
METHOD = "ldm_correspondence"


def list_tables(world: World) -> tuple[Table, ...]:
    few = () if world.comparable else FEW[2:]  # minutes
    ours: Rows = {}
    for data, rule in JUDGED.items():
        ours |= list_rows("ldm", METHOD, (data,), "DATASET.THRESHOLD", rule, *few)
    return (
        Table(
            "table_ldm",
            "LDM_correspondences: main comparison",
            {
                **{label: list_rows(name, "", JUDGED) for label, name in REPORTED.items()},
                "LDM_correspondences": ours,
                "LDM_correspondences, usual thresholds": list_rows(
                    "ldm-usual", METHOD, JUDGED, *few, folder="ldm-usual"
                ),
            },
            dict.fromkeys(JUDGED, (0.05, 0.1)),
            "Its authors judge SPair-71k by the source's box, PF-Willow by the greatest coordinate, three classes of "
            "CUB by the width's scale; the last line by the target's box or points.",
            paper="ldm",
            localiser="centre",
        ),
        Table(
            "ldm",
            "LDM_correspondences: what its parts do, validation pairs",
            _list_parts(world),
            {"spair": (0.05, 0.1)},
            " ".join(FEW),
            localiser="nn",
        ),
    )


def _list_parts(world: World) -> dict[str, Rows]:
    section = world.load(METHOD).LDM
    layers = section.READ_LAYERS or section.LAYERS
    variants = {
        "1 round": ("ROUNDS", "1"),
        "a third of the steps": ("STEPS", str(section.STEPS // 3)),
        "read on the corner crops alone": ("CROPS", "4"),
        "no softmax over the pixels": ("PIXEL_SOFTMAX", "False"),
        "normal noise": ("NOISE", "normal"),
        **{f"read on {layer} alone": ("READ_LAYERS", f"['{layer}']") for layer in layers if len(layers) > 1},
    }
    return {
        "the same place": _row("same_place", METHOD, "METHOD.NAME", "same_place"),
        "attention of the category's word": _row(
            "word_attention", METHOD, "METHOD.NAME", "word_attention", "TEST.ENSEMBLE", "1"
        ),
        "DIFT, text prompt": _row("dift", "dift", "EVAL.LOCALISERS", "['nn']", "EVAL.PICTURE_LOCALISER", "nn"),
        "LDM_correspondences": _row("ldm", METHOD),
        **{
            label: _row(f"ldm-{label.replace(' ', '_')}", METHOD, f"LDM.{key}", value)
            for label, (key, value) in variants.items()
        },
    }


def _row(name: str, config: str, *opts: str) -> Rows:
    return list_rows(f"{name}-val", config, ("spair",), *FEW, *opts, folder=f"{name}-val")
