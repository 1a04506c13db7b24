"""What the Tab key offers beyond commands and options: settings and their values, configs, names.

shtab makes the script; it takes functions of the shells from the attribute `complete` of an option.
"""

from __future__ import annotations

import json
import re
from argparse import Action
from collections.abc import Iterable
from functools import cache
from shlex import join

from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.settings import SETTINGS

__all__ = ["offer_configs", "offer_names", "offer_settings"]

_ONE_WORD = re.compile(r"[\w.+-]+", re.ASCII)  # which no shell reads anything into
_BASH = """\
# $1=COMP_WORDS[1]
_monai_dpmm_settings() {{
  local found=($(compgen -W "{names}" -- "$1"))
  # a single one is followed by its values, or the shell would put a space after the "="
  [ ${{#found[@]}} -eq 1 ] && found=(${{found[0]}} $(compgen -W "{pairs}" -- "${{found[0]}}"))
  printf '%s\\n' "${{found[@]}}"
}}
"""
_ZSH = """\
_monai_dpmm_settings() {{
  local -a pairs=({pairs})
  if compset -P '*='; then
    compadd -- ${{${{(M)pairs:#${{IPREFIX##* }}*}}#*=}}
  else
    compadd -S '' -- {names}
  fi
}}
"""
_FISH = """\
function _monai_dpmm_settings
  switch (commandline -ct)
    case '*=*'
      printf '%s\\n' {pairs}
    case '*'
      printf '%s\\n' {names}
  end
end
"""


def offer_settings(option: Action) -> None:
    """Names of settings with their "=", and the values of closed choices and defaults."""
    names, pairs = _settings()
    lists = {"names": join(names), "pairs": join(pairs)}
    option.complete = {  # type: ignore[attr-defined]
        "bash": "_monai_dpmm_settings",
        "zsh": "_monai_dpmm_settings",
        "fish": "(_monai_dpmm_settings)",
        "preamble": {
            "bash": _BASH.format(names=" ".join(names), pairs=" ".join(pairs)),
            "zsh": _ZSH.format(**lists),
            "fish": _FISH.format(**lists),
        },
    }


def offer_configs(option: Action) -> None:
    """Names of the configs that can be laid over a command's own."""
    names = {path.stem for path in configs_dir().glob("*.json")} - {"metadata"}
    offer_names(option, sorted(names))


def offer_names(option: Action, names: Iterable[str]) -> None:
    """Names that are known, where others may be given, too."""
    words = join(names)
    function = f"_monai_dpmm_{option.dest}"
    option.complete = {  # type: ignore[attr-defined]
        "bash": function,
        "zsh": f"({words})",
        "fish": words,
        "preamble": {"bash": f'{function}() {{\n  compgen -W "{words}" -- "$1"\n}}\n'},
    }


@cache
def _settings() -> tuple[list[str], list[str]]:
    """Names as "score=", and pairs as "score=cosine", the default first where it is one word."""
    names, pairs = [], []
    for name, row in SETTINGS.items():
        if row.rule is None:  # nobody sets it
            continue
        names.append(f"{name}=")
        default = row.default if isinstance(row.default, str) else json.dumps(row.default)
        values = dict.fromkeys([default, *row.rule.names])
        pairs += [f"{name}={value}" for value in values if _ONE_WORD.fullmatch(value)]
    return names, pairs
