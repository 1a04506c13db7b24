"""The commands and their options: `python -m monai_dpmm COMMAND --help` is written here."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from monai_dpmm import __version__
from monai_dpmm.app import cli_commands as cli
from monai_dpmm.app import cli_options as options

_EPILOG = """\
A first model, and what it finds in other scans:
  monai-dpmm check healthy_scans
  monai-dpmm train healthy_scans -f brain
  monai-dpmm infer scans -f brain

demo, train, calibrate, evaluate and infer are workflows of the bundle, which
MONAI runs as well, for example
  python -m monai.bundle run training --config_file configs/train.json \\
    --dataset_dir healthy_scans
Any value of their configs can be set with -s, and --dry-run prints them all.

exit codes:
  0    done
  1    a problem of the data or the model, told in one line on standard error;
       also where check finds one, or infer did all scans but some. A traceback,
       also 1, is a bug: please report it. Where the variable
       MONAI_DPMM_TRACEBACK is set, every error has its traceback
  2    an option, key or config that there is none of; nothing has been run
  130  interrupted (Ctrl-C)
"""
_SETTINGS = """\
examples of -s:
  -s max_epochs=10 -s image_size=224     numbers and lists as in JSON
  -s train#trainer#max_epochs=10         a key within another
"""

_EXAMPLES = {
    "check": "The exit code is 1 where something is wrong.",
    "train": """\
examples:
  monai-dpmm train healthy_scans -f brain -c steady
  monai-dpmm train ct_scans -f head -c ct_brain -s max_epochs=20
  monai-dpmm train healthy_scans --dry-run           all values that can be set

"""
    + _SETTINGS,
    "evaluate": """\
example:
  monai-dpmm evaluate dataset -f brain -s bootstrap=200

"""
    + _SETTINGS,
    "infer": """\
examples:
  monai-dpmm infer scans -f brain
  monai-dpmm infer series_folder -f brain -s dicom_output=true

A scan that cannot be used does not stop the others; it is named at the end,
and the exit code is 1.

"""
    + _SETTINGS,
    "report": """\
Nothing is measured again: metrics are those of the report that is there.

example:
  monai-dpmm report scans -f brain --slices 3 -o report_of_brain
""",
    "score": "",
    "bundle": "",
    "completion": """\
It completes monai-dpmm: commands, options, files, folders, names of configs.

bash, at the end of ~/.bashrc:
  eval "$(monai-dpmm completion bash)"
zsh, once, into a folder of $fpath:
  monai-dpmm completion zsh > FOLDER/_monai-dpmm
fish, once:
  monai-dpmm completion fish > ~/.config/fish/completions/monai-dpmm.fish
""",
}
_HELP = {
    "demo": "train and evaluate on a simulated cohort of brains",
    "check": "tell what a data set holds, and what is wrong with it",
    "train": "fit a model of normality to healthy scans",
    "calibrate": "find thresholds in ml a scan, and what the scan check needs",
    "evaluate": "measure a model on labelled scans, with a report",
    "infer": "write anomaly volumes and a report",
    "report": "write the report of results anew, without running the network",
    "compare": "fit the DPMM and its baselines to the same embeddings",
    "score": "measure anomaly maps that any tool saved, one file an image",
    "figures": "draw a paper's figures of a trained model, as PDF and PNG",
    "bundle": "write a trained model as a bundle of its own, folder and zip",
    "completion": "print a script that completes commands in a shell",
}

__all__ = ["command_parser"]


def command_parser() -> ArgumentParser:
    """Parser of all commands; the result's `run` is what to call with it.

    A command's options are declared by the function of its name in `cli_options`, and it is run by
    that in `cli_commands`; those that are made of configs alone share one.
    """
    parser = ArgumentParser(
        prog="monai-dpmm",
        description="Unsupervised anomaly detection for medical volumes.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", title="commands"
    )
    for name, told in _HELP.items():
        command = commands.add_parser(
            name,
            help=told,
            description=f"{told[:1].upper()}{told[1:]}.",
            epilog=_EXAMPLES.get(name, _SETTINGS),
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=getattr(cli, name, cli.workflows), parser=parser)
        getattr(options, name)(command)
    return parser
