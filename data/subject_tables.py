"""Tables of who was scanned, as people have them: CSV from LONI or a spreadsheet, ADNI's meta_data_with_label.json, TSV of BIDS.

    table = read_subjects("idaSearch.csv")      # {"218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "2011-05-03"), ...}

What cannot be told is None, with one warning; what could give a scan to another person is rejected, in one line.
"""

import codecs
import contextlib
import csv
import datetime
import io
import json
import re
import sys
from typing import NamedTuple

from data.folders import some_of
from utils import UserError, printable

# The columns that are looked for, as letters and digits only, in any order: LONI's names (of a collection, of its search, and
# since October 2024 of all images), ADNIMERGE's, those of BIDS, and plain ones.
COLUMNS = {
    "image": ("imagedataid", "imageid", "imageuid", "image", "path", "filename", "file"),
    "person": ("participantid", "subject", "subjectid", "ptid"),
    "group": ("group", "researchgroup", "diagnosis", "dx", "class"),
    "sex": ("sex", "gender", "ptgender"),
    "age": ("age", "ageyears", "ageatscan", "ageatvisit"),
    "date": ("acqdate", "studydate", "imagedate", "acqtime", "scandate", "date"),
    "session": ("sessionid", "session"),  # of BIDS
}
NEEDED = {"image": "Image Data ID (or image)", "person": "Subject"}
HEADER_WITHIN = 20  # lines: a title and remarks may come before the header
MAX_TABLE = 2**26  # bytes, of some 400,000 scans
UNKNOWN = "", "-", "--", ".", "?", "n/a", "#n/a", "nan", "na", "<na>", "none", "null", "nil", "unknown", "missing", "not available"
LABELS = {"0": "CN", "1": "MCI", "2": "AD"}  # of meta_data_with_label.json
ADNI_PERSON = re.compile(r"(?<![0-9])[0-9]{3}_S_[0-9]{4,5}(?![0-9])", re.IGNORECASE)
QUOTES = r"""^[='"‘’“”\s]+|['"‘’“”\s]+$"""  # around a cell: ="218391" and '218391 keep spreadsheets from reading a number
BIDS = r"sub-[A-Za-z0-9+-]+(?:_[A-Za-z0-9+-]+)*"
DAY = re.compile(r"[0-9]{4}([-/])[0-9]{1,2}\1[0-9]{1,2}(?![0-9])|(19|20)[0-9]{6}|[0-9]{1,2}([-/.])[0-9]{1,2}\3[0-9]{4}(?![0-9])")


class Scan(NamedTuple):
    """What is known of a slice's scan; None for what is not."""

    image: str | None = None  # ADNI's Image Data ID without the leading I and zeros; in BIDS the name without the slice: sub-01_T1w
    person: str | None = None
    group: str | None = None  # as in the table: AD, CN, MCI, ...
    sex: str | None = None  # its first letter: M, F
    age: float | None = None  # years
    date: str | None = None  # of the scan, 2011-05-03; as in the table if that is no date


def scan_id(name):
    """The scan in a slice's file name: "218391" of "AD/218391_78.jpeg" or "I218391_78.png", and "sub-01_ses-02_T1w" of
    "sub-01_ses-02_T1w_90.jpeg", a BIDS name; None in any other name."""
    name = re.split(r"[/\\]", name)[-1]
    if match := re.fullmatch(rf"({BIDS}?)(?:_[0-9]+)?\.\w+", name):
        return match[1]
    match = re.fullmatch(r"[Ii]?([0-9]+)_[0-9]+\.\w+", name)
    return match and (match[1].lstrip("0") or "0")


def image_id(text):
    """The scan in a cell: an Image Data ID (I218391, 00218391, 218391.0), the file name of a slice, or a BIDS name; None for
    anything else, such as numbers that were shortened (2.18E+05)."""
    if plain := re.fullmatch(r"[Ii]?([0-9]+)(?:[.,]0{1,2})?", text):
        return plain[1].lstrip("0") or "0"
    return text if re.fullmatch(BIDS, text) else scan_id(text)


def years(text):
    """An age of 0 to 150 years: 71.5 of "71.5", "71,5", "71.5 years" or "71.5Y"; None for anything else, such as "90+"."""
    match = re.fullmatch(r"([0-9]{1,3}(?:[.,][0-9]+)?)\s*(?:y|yrs?|years?)?\.?", text, re.IGNORECASE)
    age = float(match[1].replace(",", ".")) if match else 150
    return age if age < 150 else None


def iso_date(text, day_first=False):
    """ "2011-05-03" of "2011-05-03_12_34_56.0", "20110503", "5/03/2011" (LONI's order, unless `day_first`) or "03.05.2011"; any
    other text as it is."""
    day = re.sub("[-/]", " ", found[0]) if (found := DAY.match(text)) else ""
    either = ["%d %m %Y", "%m %d %Y"] if day_first else ["%m %d %Y", "%d %m %Y"]
    for form in ("%Y %m %d", "%Y%m%d", "%d.%m.%Y", *either):
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(day, form).date().isoformat()
    return text


def read_subjects(path, quiet=False, flag="--subjects"):
    """{image: Scan} of a table; its warnings go to stderr, unless `quiet`.

    CSV with a header, LONI's or `image,subject`, separated by , ; | or tabs, in UTF-8, UTF-16 with its mark, or Windows-1252; lines
    above the header are left out. An image is what `image_id` takes, such as the path of a slice in the subjects.csv of phantom.py;
    several rows of one image are merged. Also meta_data_with_label.json, and participants.tsv and sessions.tsv of BIDS, whose
    images are sub-01 and sub-01_ses-02. UserError, which begins with `flag` and the path: no such table; a row whose image is none,
    that has no subject, or more cells than the header; rows of one image that contradict each other.
    """
    where, doubts = f"{flag} {path}".lstrip(), {}  # {what is said of them: [rows or entries]}
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_TABLE:
        raise UserError(f"{where}: too large for a table of scans (more than {MAX_TABLE} bytes)")
    text = decode(data)
    if sum(not (c.isprintable() or c.isspace()) for c in text[:4096]) > len(text[:4096]) / 20:
        raise UserError(f"{where}: not a text file (a workbook, a picture?); save the table as CSV, and give that")
    try:
        table = (read_metadata if text.lstrip()[:1] in ("{", "[") else read_rows)(text, doubts)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except csv.Error as error:
        raise UserError(f"{where}: not a CSV file, or its quotation marks do not match ({error})") from None
    for doubt, found in doubts.items():
        if found and not quiet:
            print(f"warning: {where}: {doubt} ({len(found)}): {some_of(found, 5)}", file=sys.stderr)
    return table


def decode(data):
    """The text of a table: UTF-16 by its byte order mark, else UTF-8, else Windows-1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def cells_of(row):
    """The cells of a row, without quotation marks around them, and without empty ones at its end."""
    cells = [re.sub(QUOTES, "", cell) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def find_header(lines):
    """(number of the line of the header, its cells, {field of COLUMNS: number of its column}, delimiter); UserError if none."""
    shown = f"empty; it should be a CSV with the columns {' and '.join(NEEDED.values())}"
    for number, line in enumerate(lines[:HEADER_WITHIN]):
        for delimiter in sorted(",;\t|", key=line.count, reverse=True):
            header = cells_of(next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)))
            names = [re.sub(r"[\W_]+", "", name).casefold() for name in header]
            known = {field: next((name for name in known if name in names), None) for field, known in COLUMNS.items()}
            if "participantid" in names or known["image"] and known["person"]:
                if twice := next((name for name in known.values() if name and names.count(name) > 1), None):
                    raise UserError(f"two columns are called {header[names.index(twice)]}; remove one")
                return number, header, {field: names.index(name) for field, name in known.items() if name}, delimiter
            if shown.startswith("empty") and line.strip() and not line.startswith("sep="):
                missing = [title for field, title in NEEDED.items() if not known[field]]
                shown = f"no column {' and no column '.join(missing)}; its first line is {printable(', '.join(header))[:200]}"
    raise UserError(shown)


def read_rows(text, doubts):
    """{image: Scan} of the text of a CSV or TSV; rows without an image are left out, and named in `doubts` as odd ages are."""
    lines = io.StringIO(text, newline=None).readlines()  # lines end in \n, \r\n or \r
    above, header, columns, delimiter = find_header(lines)
    needed = "image" if "image" in columns else "person"
    rows, nameless, odd = [], [], []
    reader, line = csv.reader(lines[above:], delimiter=delimiter, strict=True, skipinitialspace=True), above + 1
    for row in map(cells_of, reader):
        if any(delimiter in cell and "\n" in cell for cell in row):
            raise UserError(f"line {line}: a quotation mark is not closed, so that lines run together; correct it")
        if len(row) > len(header):
            counts = f"{len(row)} cells, but the header has {len(header)}; a cell with {delimiter!r} needs quotes"
            raise UserError(f"line {line}: {counts}")
        cells = {field: row[i] if i < len(row) else "" for field, i in columns.items()}
        if row and row != header and cells[needed].casefold() in UNKNOWN:
            nameless.append(f"line {line}")
        elif row and row != header:
            rows.append((line, cells))
        line = above + reader.line_num + 1
    if not rows:
        raise UserError(f"there are no rows below its header{' that name an image' if nameless else ''}")
    days = [re.match(r"([0-9]{1,2})[/-]([0-9]{1,2})[/-]", cells.get("date", "")) for _, cells in rows]
    day_first = any(day and int(day[1]) > 12 for day in days)
    table, first = {}, {}
    for line, cells in rows:
        try:
            scan = read_scan(cells, day_first)
        except UserError as error:
            raise UserError(f"line {line}: {error}") from None
        if scan.age is None and cells.get("age", "").casefold() not in UNKNOWN:
            odd.append(f"line {line} {cells['age'][:20]!r}")
        table[scan.image] = merge(f"lines {first.get(scan.image)} and {line}", table.get(scan.image, scan), scan)
        first[scan.image] = line
    doubts["rows that name no image are left out"] = nameless
    doubts["ages that are not a number of years count as unknown"] = odd
    return table


def read_scan(cells, day_first):
    """The Scan in a row's cells {field: text}; UserError for one without image or subject."""
    known = {field: text for field, text in cells.items() if text.casefold() not in UNKNOWN}
    session = known.pop("session", None)
    if "image" not in cells:  # BIDS
        known["person"] = "sub-" + known["person"].removeprefix("sub-")
        known["image"] = known["person"] + (f"_ses-{session.removeprefix('ses-')}" if session else "")
    image, person = image_id(known["image"]), known.get("person")
    if not image:
        shown = repr(known["image"][:80])
        raise UserError(f"{shown} is neither an Image Data ID such as I218391 nor a file such as 218391_78.jpeg")
    if not person:
        raise UserError(f"image {known['image']} has no subject")
    if re.fullmatch(r"[0-9]([.,][0-9]+)?[eE][+-]?[0-9]+", person):
        raise UserError(f"a spreadsheet has shortened the subject {person}; format its column as text")
    sex, age, date = known.get("sex"), known.get("age"), known.get("date")
    if adni := re.fullmatch(r"([0-9]{3})[-_ ]S[-_ ]([0-9]{4,5})", person, re.IGNORECASE):
        person = f"{adni[1]}_S_{adni[2]}"  # in one spelling, whatever the case and the signs between
    person = re.sub(r"^([0-9]+)\.0+$", r"\1", person)
    known |= {"image": image, "person": person, "sex": sex and sex[0].upper(), "age": age and years(age)}
    return Scan(**known | {"date": date and iso_date(date, day_first)})


def merge(where, before, scan):
    """One Scan of two rows of one image; UserError, which begins with `where`, if they contradict each other."""
    for field, a, b in zip(Scan._fields, before, scan):
        if None not in (a, b) and a != b:
            raise UserError(f"{where} contradict each other: image {scan.image} has {field} {a} and {b}; correct or remove one")
    return Scan(*(b if a is None else a for a, b in zip(before, scan)))


def read_metadata(text, doubts):
    """{image: Scan} of ADNI's meta_data_with_label.json, {image ID: {"raw": path with the person and the date, "label": 0 to 2}}.

    Entries that tell no person are left out and named in `doubts`, as unknown labels are. UserError if nothing is left.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON file ({printable(str(error))[:100]})") from None
    table, nameless, odd = {}, [], []
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        entry = entry if isinstance(entry, dict) else {}
        raw, label = str(entry.get("raw", "")), str(entry.get("label", ""))
        image, person = image_id(key), ADNI_PERSON.search(re.split(r"[/\\]", raw)[-1]) or ADNI_PERSON.search(raw)
        if not image or not person:
            nameless.append(key[:40])
            continue
        if label not in LABELS:
            odd.append(f"{label[:20]!r} of {key[:40]}")
        scan = Scan(image, person[0].upper(), LABELS.get(label), date=date_in(raw))
        table[image] = merge("entries of one image", table.get(image, scan), scan)
    if not table:
        example = '"218391": {"raw": "ADNI_037_S_4001_...", "label": 2}'
        raise UserError(f"no entry such as {example}; give such a file or a CSV")
    doubts["entries without an image ID, or a person in raw, are left out"] = nameless
    doubts["labels other than 0, 1 and 2 count as unknown"] = odd
    return table


def date_in(path):
    """The first date in a path, 2011-05-03 or 20110503 with or without a time after it, as "2011-05-03"; None without one.

    Dates with hyphens come first: LONI's folders of scans have them, and the digits in its file names may be of a later conversion.
    """
    found = re.findall(r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}", path) + re.findall(r"(?<![0-9A-Za-z])(?:19|20)[0-9]{6}", path)
    days = (iso_date(text.replace("-", "")) for text in found)
    return next((day for day in days if "-" in day), None)  # iso_date keeps what is no day
