"""Results as tables, figures, one self-contained page and a model card. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisewise.report.card import model_card, write_card
    from noisewise.report.page import write_report
    from noisewise.report.results import Results, load_results, parse_results
    from noisewise.report.tables import markdown_table, rich_table, summary_table

__all__ = [
    "Results",
    "load_results",
    "markdown_table",
    "model_card",
    "parse_results",
    "rich_table",
    "summary_table",
    "write_card",
    "write_report",
]

_HOMES = {
    "Results": "results",
    "load_results": "results",
    "parse_results": "results",
    "markdown_table": "tables",
    "rich_table": "tables",
    "summary_table": "tables",
    "model_card": "card",
    "write_card": "card",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'noisewise.report' has no attribute {name!r}")
    return getattr(import_module(f"noisewise.report.{_HOMES[name]}"), name)
