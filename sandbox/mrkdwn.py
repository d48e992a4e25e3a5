"""Slack's mrkdwn as HTML, for the page of the Slack stand-in.

Only what Slack would format is formatted; every other character is escaped. `&amp; &lt; &gt;` are the three
entities Slack knows, and links are taken from `<url|label>` only.
"""

import html
import re
from collections.abc import Callable

# Drawn by the page's style, since not every machine has a font with emoji.
_DOTS = {"red_circle", "large_orange_circle", "large_yellow_circle", "large_green_circle", "large_blue_circle"}
_EMOJI = {"white_check_mark": "\u2714", "warning": "\u26a0", "x": "\u2718"}
_LINK_SCHEMES = ("http://", "https://", "mailto:")
_CODE = re.compile(r"```(.+?)```|`([^`\n]+)`", re.DOTALL)
_ANGLE = re.compile(r"<([^<>\n]+)>")
_SHORTCODE = re.compile(r":([a-z0-9_+-]+):")
# A mark counts at the edge of a word only, and not around spaces: 3*4*5 is no bold 4.
_STYLES = tuple(
    (re.compile(rf"(?<![\w{mark}]){mark}(?!\s)([^{mark}\n]+?)(?<!\s){mark}(?![\w{mark}])"), tag)
    for mark, tag in ((r"\*", "strong"), ("_", "em"), ("~", "del"))
)


def to_html(text: str) -> str:
    """Format one mrkdwn text."""
    return _split(_CODE, text, _code, _lines)


def plain_to_html(text: str) -> str:
    """Format a plain_text object: emoji and line ends only."""
    return _emoji(html.escape(text)).replace("\n", "<br>")


def plain(text: str) -> str:
    """The characters a person would read: entities resolved."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def safe_link(url: str) -> str | None:
    """The URL when a browser may be sent there, else None."""
    return url if url.startswith(_LINK_SCHEMES) else None


def _split(pattern: re.Pattern[str], text: str, inside: Callable[[str], str], outside: Callable[[str], str]) -> str:
    parts, position = [], 0
    for found in pattern.finditer(text):
        parts += [outside(text[position : found.start()]), inside(found[0])]
        position = found.end()
    return "".join([*parts, outside(text[position:])])


def _code(text: str) -> str:
    if text.startswith("```"):
        return f"<pre>{html.escape(plain(text[3:-3].strip(chr(10))))}</pre>"
    return f"<code>{html.escape(plain(text[1:-1]))}</code>"


def _lines(text: str) -> str:
    shown = []
    for line in text.split("\n"):
        quoted = line.removeprefix("&gt;")
        inner = _split(_ANGLE, quoted, _angle, _styled)
        shown.append(f"<blockquote>{inner.strip()}</blockquote>" if quoted != line else inner)
    return "<br>".join(shown).replace("</blockquote><br>", "</blockquote>")


def _angle(text: str) -> str:
    target, _, label = text[1:-1].partition("|")
    if target.startswith(("!", "@", "#")):  # <!channel>, <@U123>, <#C123|general>
        return f'<span class="mention">{html.escape(plain(label or target.lstrip("!")))}</span>'
    url = safe_link(plain(target))
    if url is None:
        return html.escape(plain(text))
    return f'<a href="{html.escape(url)}" rel="noreferrer">{html.escape(plain(label or target))}</a>'


def _styled(text: str) -> str:
    shown = html.escape(plain(text))
    for pattern, tag in _STYLES:
        shown = pattern.sub(rf"<{tag}>\1</{tag}>", shown)
    return _emoji(shown)


def _emoji(text: str) -> str:
    return _SHORTCODE.sub(_glyph, text)


def _glyph(found: re.Match[str]) -> str:
    if found[1] in _DOTS:
        return f'<span class="dot {found[1]}"></span>'
    return _EMOJI.get(found[1], found[0])
