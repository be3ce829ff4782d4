"""The command line: thin commands over the library, one line and exit code 2 for a mistake of the user's.

Nothing heavy is imported before a command runs, so that help is immediate.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError, UnusedCliTokensError

from noisewise import __version__
from noisewise.cli import combine, models, recipes, studies
from noisewise.errors import SettingError, TrainingError

INTERRUPTED = 130

app = App(
    name="noisewise",
    version=__version__,
    suppress_keyboard_interrupt=False,  # it would end the program without a word on how to go on
    help="One denoiser per range of noise levels, each as large as its task deserves, as an ordinary diffusers model.",
)
for command in (
    recipes.init, recipes.plan, recipes.run, models.prune, models.sample, models.evaluate, recipes.report,
    recipes.status, studies.study, combine.stitch, combine.merge,
):  # fmt: skip
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a mistake of the user's, 1 for a failure, 130 when interrupted."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # a joint training's groups come in many batch sizes: its CPU kernels outgrow the default cache and are made anew
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    previous = signal.signal(signal.SIGTERM, _terminated), warnings.showwarning
    warnings.showwarning = _show_warning
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    except CycloptsError as error:
        return _fail(f"{_said(error)} (noisewise {' '.join(words[:1])} --help)", 2)
    except SettingError as error:
        return _fail(str(error), 2)
    except (TrainingError, recipes.step_error()) as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
        return 1
    except OSError as error:  # a full disk, a folder that is a file, no permission
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        warnings.showwarning = previous[1]


def _said(error: CycloptsError) -> str:
    """What cyclopts says of words on the command line; words left over are most often a value without its quotes."""
    if isinstance(error, UnusedCliTokensError):
        left = " ".join(error.unused_tokens or ())
        return f"{left}: too many words; a value with spaces needs quotes, e.g. --set 'data={{kind: sklearn-digits}}'"
    return " ".join(str(error).split())


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line; those of libraries about themselves are for developers."""
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"noisewise: {' '.join(message.split())}", file=sys.stderr)
    return code
