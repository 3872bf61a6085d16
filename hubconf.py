"""Entry points of torch.hub: `torch.hub.load(checkout, "sd4match", source="local")`."""

dependencies = ["torch", "diffusers", "transformers", "safetensors", "yacs"]


def sd4match(name: str = "mini", prompt: str | None = None, device: str = "auto", **settings):
    """sd4match.Matcher.from_pretrained with the same arguments: a matcher of points between two images."""
    from sd4match import Matcher

    return Matcher.from_pretrained(name, prompt, device, **settings)


def featurizer(name: str = "mini", *args, **options):
    """sd4match.Featurizer with the same arguments: images -> {layer: feature map}."""
    from sd4match import Featurizer

    return Featurizer(name, *args, **options)
