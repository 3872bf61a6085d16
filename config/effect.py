"""Which keys, or sections, cannot change a number: runs and results that differ only in these are the same."""

WITHOUT_EFFECT = (
    "DEVICE",  # where PRECISION auto has become fp32, fp16 or bf16 (model.backbone.device.resolve_precision)
    "OUTPUT_ROOT",
    "CACHE_ROOT",
    "DATASET.ROOT",
    "DATASET.FOLDER",
    "DATASET.PREPARE",
    "DATASET.NUM_WORKERS",
    "NETWORK.RECOMPUTE",
    "NETWORK.MEMORY_FORMAT",
    "NETWORK.COMPILE",
    "LDM.ROWS_AT_ONCE",
    "LDM.KEPT_CROPS",
    "PROMPT.WITHOUT_CATEGORY",
    "DSD.ROWS",
    "TRAIN.ACCUMULATION",
    "TRAIN.SAVE_EVERY",
    "TRAIN.LOG_EVERY",
    "VAL.PICTURES",
    "VAL.DENSE",
    "VAL.GENERATE",
    "TEST.PICTURES",
    "GENERATE.",
    "EVAL.BATCH_SIZE",
    "EVAL.PICTURE_LOCALISER",
    "EVAL.PICTURE_ALPHA",
    "TRANSFER.",  # transfer.py keeps them with its labels
)
