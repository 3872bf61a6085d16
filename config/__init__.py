"""Configuration: default < file < `KEY value` on the command line, then checked and frozen."""

from config.default import get_default_config
from config.effect import WITHOUT_EFFECT
from config.load import ConfigError, change_config, dump_config, iter_keys, load_config
from config.path import INSTALLED, ROOT, resolve_network, resolve_path

__all__ = [
    "INSTALLED",
    "ROOT",
    "WITHOUT_EFFECT",
    "ConfigError",
    "change_config",
    "dump_config",
    "get_default_config",
    "iter_keys",
    "load_config",
    "resolve_network",
    "resolve_path",
]
