"""Write unicode_tables.inc: what BERT's normaliser does to every code point, found by probing the `tokenizers` package.

    python csrc/text/make_unicode_tables.py

The tables record behaviour (tokenizers mixes several Unicode versions), so neither ICU nor `unicodedata` replaces them.
"""

import sys
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

KEEP, DELETE, SPACE, CJK, MAPPED, HANGUL, BARRIER = range(7)
HANGUL_FIRST, HANGUL_LAST = 0xAC00, 0xD7A3


def code_points():
    for c in range(0x110000):
        if not 0xD800 <= c <= 0xDFFF:
            yield c


def probe(normalizer):
    """{code point: text it becomes}, where it changes at all."""
    changed = {}
    for c in code_points():
        out = normalizer.normalize_str(f"x{chr(c)}y")
        assert out.startswith("x"), hex(c)
        assert out.endswith("y"), hex(c)
        if out[1:-1] != chr(c):
            changed[c] = out[1:-1]
    return changed


def combining_ranks():
    """{code point: rank of its canonical combining class}, where that class is not 0: only the order matters."""
    nfd = NFD().normalize_str
    low, high = "\u0334", "\u0345"  # the lowest class and the highest

    def known(t):
        return nfd(f"a{t}{low}") == f"a{low}{t}" or nfd(f"a{high}{t}") == f"a{t}{high}"

    reference = {}  # one mark that the normaliser knows for each class
    for c in code_points():
        k = unicodedata.combining(chr(c))
        if k and (known(chr(c)) or chr(c) in (low, high)):
            reference.setdefault(k, chr(c))
    classes = sorted(reference)
    ranks = {}
    for c in code_points():
        t = chr(c)
        if HANGUL_FIRST <= c <= HANGUL_LAST or nfd(t) != t:
            continue  # its parts have their own ranks
        if known(t) or t in (low, high):
            above = [k for k in classes if nfd(f"a{t}{reference[k]}") == f"a{t}{reference[k]}" and t != reference[k]]
            same = [k for k in above if nfd(f"a{reference[k]}{t}") == f"a{reference[k]}{t}"]
            if t in reference.values():
                ranks[c] = classes.index(unicodedata.combining(t)) + 1
            else:
                assert len(same) == 1, (hex(c), same)
                ranks[c] = classes.index(same[0]) + 1
    return ranks


def ranges(values):
    """[(first, last, value)] over runs of equal values of a {code point: value}."""
    runs = []
    for c in sorted(values):
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == values[c]:
            runs[-1][1] = c
        else:
            runs.append([c, c, values[c]])
    return runs


def kinds(changed, ranks, mapped):
    nfd = NFD().normalize_str
    out = {}
    for c, text in changed.items():
        if text == "":
            out[c] = DELETE
        elif text == " ":
            out[c] = SPACE
        elif text[0] == text[-1] == " ":
            out[c] = CJK
            if text[1:-1] != chr(c):
                assert mapped is not None
                mapped[c] = text[1:-1]
        elif HANGUL_FIRST <= c <= HANGUL_LAST:
            out[c] = HANGUL
        else:
            assert mapped is not None, hex(c)
            assert " " not in text, hex(c)
            assert ord(nfd(chr(c))[0]) not in ranks, hex(c)  # it begins with a starter: marks never move over it
            out[c] = MAPPED
            mapped[c] = text
    return out


def write_rows(file, name, fields, rows):
    file.write(f"constexpr {fields} {name}[] = {{\n")
    line = "   "
    for row in rows:
        item = " {" + ", ".join(str(v) for v in row) + "},"
        if len(line) + len(item) > 118:
            file.write(line + "\n")
            line = "   "
        line += item
    file.write(line + "\n};\n")


def main():
    ranks = combining_ranks()
    lower, cased = probe(BertNormalizer(lowercase=True)), probe(BertNormalizer(lowercase=False))
    mapped = {}
    lower_kinds, cased_kinds = kinds(lower, ranks, mapped), kinds(cased, ranks, None)
    # clean_text deletes before NFD and is invisible to it; a mark that is stripped afterwards stops other marks from
    # moving over it if its class is 0.
    for c, kind in lower_kinds.items():
        if kind == DELETE and c not in cased and any(ord(p) not in ranks for p in NFD().normalize_str(chr(c))):
            lower_kinds[c] = BARRIER
    pretokenizer = BertPreTokenizer()
    punctuation = {}
    for c in code_points():
        parts = len(pretokenizer.pre_tokenize_str(f"x{chr(c)}y"))
        if parts == 3:
            punctuation[c] = 1
            assert c not in ranks, hex(c)
        elif parts == 2:  # white space: it must not survive the normaliser
            gone = {lower_kinds.get(c), cased_kinds.get(c)}
            assert c == 0x20 or gone <= {SPACE, DELETE}, hex(c)
    # Marks that are stripped after NFD took part in its reordering, which decides where tokens lie in their text.
    for c, kind in lower_kinds.items():
        if kind == DELETE and c not in cased:
            ranks[c] = ranks[ord(NFD().normalize_str(chr(c))[0])]
    characters = "".join(mapped[c] for c in sorted(mapped))
    offset, rows = 0, []
    for c in sorted(mapped):
        rows.append((hex(c), offset, len(mapped[c])))
        offset += len(mapped[c])
    path = Path(__file__).with_name("unicode_tables.inc")
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(f"// Made by make_unicode_tables.py from tokenizers {tokenizers.__version__}. Do not edit.\n")
        file.write("// clang-format off\n")
        for name, values in (("kLowerRanges", lower_kinds), ("kCasedRanges", cased_kinds)):
            write_rows(file, name, "Range", [(hex(a), hex(b), k) for a, b, k in ranges(values)])
        write_rows(file, "kPunctuationRanges", "Range", [(hex(a), hex(b), k) for a, b, k in ranges(punctuation)])
        write_rows(file, "kCombiningRanges", "Range", [(hex(a), hex(b), k) for a, b, k in ranges(ranks)])
        write_rows(file, "kMapped", "Mapped", rows)
        file.write("constexpr char32_t kMappedCharacters[] = {\n")
        for i in range(0, len(characters), 14):
            file.write("    " + " ".join(f"{hex(ord(c))}," for c in characters[i : i + 14]) + "\n")
        file.write("};\n")
    print(f"{path.name}: {len(mapped)} mapped, {len(ranks)} combining marks", file=sys.stderr)


if __name__ == "__main__":
    main()
