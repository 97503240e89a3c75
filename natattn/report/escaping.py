"""Escaping of plain text, including Unicode formulas, for Markdown and LaTeX."""

import re
import unicodedata

_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
_LATEX_SYMBOLS = {
    "−": "-", "×": r"\times", "±": r"\pm", "·": r"\cdot", "÷": r"\div", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq",
    "≈": r"\approx", "≪": r"\ll", "≫": r"\gg", "∝": r"\propto", "∼": r"\sim", "∞": r"\infty", "√": r"\surd",
    "∑": r"\sum", "∂": r"\partial", "∇": r"\nabla", "∈": r"\in", "∘": r"\circ", "⊗": r"\otimes", "⟨": r"\langle",
    "⟩": r"\rangle", "‖": r"\|", "→": r"\rightarrow", "←": r"\leftarrow", "⇒": r"\Rightarrow", "ℓ": r"\ell",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "°": r"^\circ", "′": r"'", "µ": r"\mu",
    "ϕ": r"\phi", "ϵ": r"\epsilon", "ε": r"\varepsilon", "φ": r"\varphi", "ο": "o", "ς": r"\varsigma",
}  # fmt: skip
_LATEX_TEXT = {
    "–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "‘": "`", "“": "``", "”": "''", "\u00a0": "~", "§": r"\S{}",
    "✓": "yes", "✗": "no", "\u2009": r"\,", "\u202f": r"\,",
}  # fmt: skip
_ACCENTS = {"\u0304": r"\=", "\u0302": r"\^", "\u0303": r"\~", "\u0307": r"\.", "\u0300": r"\`", "\u0301": r"\'"}
_LATIN = 0x024F  # last letter that LaTeX's own UTF-8 input knows
# Greek capitals that look like Latin ones have no command of their own.
_AS_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))


def latex(text: str) -> str:
    """Return text for the body of a LaTeX document that needs only the base packages; line breaks become spaces.

    A character without a known command becomes its number, as in [U+2603], so that the document still compiles.
    """
    text = " ".join(text.split("\n"))
    parts: list[str] = []
    place = 0
    while place < len(text):
        after = place + 1
        letter = text[place]
        if after < len(text) and (accent := _ACCENTS.get(text[after])) and letter.isascii() and letter.isalnum():
            parts.append(f"{accent}{{{letter}}}")
            after += 1
        elif kind := _script(letter):
            while after < len(text) and _script(text[after]) == kind:
                after += 1
            parts.append(f"\\text{kind}script{{{''.join(map(_lowered, text[place:after]))}}}")
        else:
            parts.append(_latex_character(letter))
        place = after
    return "".join(parts)


def _script(letter: str) -> str:
    """``super`` or ``sub`` for a superscript or subscript, else an empty string."""
    decomposition = unicodedata.decomposition(letter)
    return next((kind for kind in ("super", "sub") if decomposition.startswith(f"<{kind}>")), "")


def _lowered(letter: str) -> str:
    """The LaTeX of a superscript or subscript, moved to the baseline."""
    return "".join(map(_latex_character, unicodedata.normalize("NFKC", letter)))


def _latex_character(letter: str) -> str:
    if letter in _LATEX_SPECIAL:
        return _LATEX_SPECIAL[letter]
    if letter in _LATEX_TEXT:
        return _LATEX_TEXT[letter]
    if letter in _LATEX_SYMBOLS:
        return f"${_LATEX_SYMBOLS[letter]}$"
    if letter in _AS_LATIN:
        return _AS_LATIN[letter]
    if letter.isascii() and letter.isprintable():
        return letter
    if ord(letter) <= _LATIN and letter.isalpha():
        return letter
    if command := _greek(letter):
        return f"$\\{command}$"
    return f"[U+{ord(letter):04X}]"


def _greek(letter: str) -> str:
    """The command of a Greek letter (lambda, Sigma); empty for any other character."""
    named = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", unicodedata.name(letter, ""))
    if named is None:
        return ""
    name = named[2].lower().replace("lamda", "lambda")
    return name.capitalize() if named[1] == "CAPITAL" else name


def markdown(text: str) -> str:
    """Return text for a cell of a Markdown table, with markup escaped and line breaks as spaces."""
    text = re.sub(r"([\\`*|~$<&\[\]])", r"\\\1", " ".join(text.split("\n")))
    # An underscore inside a word is not emphasis; unescaped, names of runs stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
