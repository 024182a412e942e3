"""Requests to answers, as one pure function: only GET, only names that the folder listing gave, everything escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from luthier.report import words
from luthier.studio.runs import Runs, thin

LANGUAGES = ("en", "zh")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
REPORT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'none'; sandbox"
)
COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = {"studio.css": "text/css; charset=utf-8", "studio.js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    kind: str = "text/html; charset=utf-8"
    csp: str = CSP
    extra: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """All of them."""
        framed = {} if self.csp == REPORT_CSP else {"X-Frame-Options": "DENY"}
        size = {"Content-Type": self.kind, "Content-Length": str(len(self.body))}
        return {**COMMON, **framed, **size, "Content-Security-Policy": self.csp, **self.extra}


class Studio:
    """The pages over one folder, for one address."""

    def __init__(self, runs: Runs, hosts: frozenset[str]):
        self.runs, self.hosts = runs, hosts

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """Any request. A foreign Host (DNS rebinding), another site's request and every other method are refused."""
        given = {name.lower(): value for name, value in headers.items()}
        if given.get("host", "").lower() not in self.hosts:
            return _plain(421, "this page is only served under its own address")
        if method not in ("GET", "HEAD"):
            return _plain(405, "only GET", {"Allow": "GET, HEAD"})
        if given.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _plain(403, "another site asked")
        if len(target) > 4000:
            return _plain(414, "too long")
        try:
            parts = urlsplit(target)
            asked = parse_qs(parts.query, max_num_fields=20)
            path = unquote(parts.path, errors="strict")
        except ValueError:
            return _plain(400, "not understood")
        if parts.scheme or parts.netloc or not path.startswith("/") or "\0" in path:
            return _plain(400, "not understood")
        return self._route(path, asked, given)

    def _route(self, path: str, asked: dict[str, list[str]], headers: Mapping[str, str]) -> Answer:
        language = _language(asked, headers)
        if path == "/":
            cards = [self.runs.card(name, run) for name, run in self.runs.names().items()]
            return self._page("list.html", language, path, runs=cards)
        if path == "/compare":
            return self._compare(asked.get("run", []), language)
        _, first, rest = [*path.split("/", 2), "", ""][:3]
        if first == "static":
            return _static(rest)
        pages = {"run": self._run, "report": self._report, "events": self._events}
        run = self.runs.names().get(rest) if first in pages else None
        if run is None:
            return self._page("missing.html", language, "/", status=404)
        return pages[first](rest, run, asked, language)

    def _run(self, name: str, run: Any, asked: dict[str, list[str]], language: str) -> Answer:
        others = [other for other in self.runs.names() if other != name]
        return self._page(
            "run.html",
            language,
            "/run/" + quote(name),
            run=self.runs.card(name, run),
            samples=self.runs.samples(run),
            has_report=bool(self.runs.read_bytes(run.report_html, 1)),
            others=others,
        )

    def _report(self, name: str, run: Any, asked: dict[str, list[str]], language: str) -> Answer:
        body = self.runs.report(run)
        if not body:
            return self._page("missing.html", language, "/", status=404)
        return Answer(200, body, csp=REPORT_CSP)

    def _events(self, name: str, run: Any, asked: dict[str, list[str]], language: str) -> Answer:
        after = asked.get("after", ["0"])[0]
        if not (after.isascii() and after.isdigit() and len(after) < 16):
            return _plain(400, "after is a number of bytes")
        found = self.runs.events(run, int(after))
        found |= {key: thin(found[key]) for key in ("train", "validation")}
        text = json.dumps(found, ensure_ascii=True, allow_nan=False)
        return Answer(200, text.encode(), "application/json", csp="default-src 'none'; frame-ancestors 'none'")

    def _compare(self, names: list[str], language: str) -> Answer:
        known = self.runs.names()
        chosen = list(dict.fromkeys(name for name in names if name in known))[:8]
        found = _compared([known[name] for name in chosen]) if len(chosen) > 1 else None
        status = 404 if any(name not in known for name in names) else 200
        return self._page(
            "compare.html", language, "/compare", status=status, names=chosen, found=found, all=list(known)
        )

    def _page(self, template: str, language: str, here: str, status: int = 200, **values: Any) -> Answer:
        texts = {**words.table(language), **texts_of(language)}
        made = _templates().get_template(template)
        other = next(one for one in LANGUAGES if one != language)
        text = made.render(t=texts, lang=language, other=other, here=here, root=str(self.runs.root.name), **values)
        return Answer(status, text.encode("utf-8", "backslashreplace"))


def _compared(runs: list[Any]) -> dict[str, Any] | None:
    from luthier.core.errors import LuthierError
    from luthier.evaluate.compare import compare

    try:
        return compare(runs)
    except (LuthierError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None


def _language(asked: Mapping[str, list[str]], headers: Mapping[str, str]) -> str:
    wanted = asked.get("lang", [""])[0]
    if wanted in LANGUAGES:
        return wanted
    return "zh" if headers.get("accept-language", "").lower().startswith("zh") else "en"


def _plain(status: int, text: str, extra: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, (text + "\n").encode(), "text/plain; charset=utf-8", extra=extra or {})


def _static(name: str) -> Answer:
    if name not in STATIC:
        return _plain(404, "not there")
    return Answer(200, files("luthier.studio").joinpath("static", name).read_bytes(), STATIC[name])


@cache
def texts_of(language: str) -> dict[str, str]:
    """The page's own words."""
    return dict(json.loads(files("luthier.studio").joinpath(f"texts/{language}.json").read_text("utf-8")))


@cache
def _templates() -> Any:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("luthier.studio", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"show": words.show, "signed": words.signed, "plain": words.plain, "url": quote}
    return made
