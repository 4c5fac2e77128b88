"""Tables of who was scanned, as people have them: CSV from LONI or a spreadsheet, ADNI's meta_data_with_label.json, TSV of BIDS.

    table = read_subjects("idaSearch.csv")      # {"218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "2011-05-03"), ...}

What cannot be told is None, with one warning; what could give a scan to another person is rejected, in one line.
"""

import codecs
import csv
import datetime
import io
import json
import re
import sys
from typing import NamedTuple

from data.folders import some_of
from utils import UserError, printable

# The columns that are looked for, as letters and digits only, in any order: LONI's names (of a collection, and of its search),
# ADNIMERGE's, those of BIDS, and plain ones.
COLUMNS = {
    "image": ("imagedataid", "imageid", "imageuid", "image", "path", "filename", "file"),
    "person": ("participantid", "subject", "subjectid", "ptid"),
    "group": ("group", "researchgroup", "diagnosis", "dx", "class"),
    "sex": ("sex", "gender", "ptgender"),
    "age": ("age", "ageyears", "ageatscan", "ageatvisit"),
    "date": ("acqdate", "studydate", "acqtime", "scandate", "date"),
    "session": ("sessionid", "session"),  # of BIDS
}
NEEDED = {"image": "Image Data ID (or image)", "person": "Subject"}
DELIMITERS = ",;\t|"
HEADER_WITHIN = 20  # lines: a title and remarks may come before the header
MAX_TABLE = 2**26  # bytes, of some 400,000 scans
UNKNOWN = "", "-", "--", ".", "?", "n/a", "#n/a", "nan", "na", "<na>", "none", "null", "nil", "unknown", "missing", "not available"
LABELS = {"0": "CN", "1": "MCI", "2": "AD"}  # of meta_data_with_label.json
ADNI_PERSON = re.compile(r"(?<![0-9])[0-9]{3}_S_[0-9]{4,5}(?![0-9])", re.IGNORECASE)
QUOTES = r"""^[='"‘’“”\s]+|['"‘’“”\s]+$"""  # around a cell: ="218391" and '218391 keep spreadsheets from reading a number
BIDS = r"sub-[A-Za-z0-9+-]+(?:_[A-Za-z0-9+-]+)*"


class Scan(NamedTuple):
    """What is known of a slice's scan; None for what is not."""

    image: str | None = None  # ADNI's Image Data ID without the leading I and zeros; in BIDS the name without the slice: sub-01_T1w
    person: str | None = None
    group: str | None = None  # as in the table: AD, CN, MCI, ...
    sex: str | None = None  # its first letter: M, F
    age: float | None = None  # years
    date: str | None = None  # of the scan, 2011-05-03; as in the table if that is no date


# ---------------------------------------------------------------------------------------------------------------------
# What stands in names and cells


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


def person_id(text):
    """A subject, in one spelling: 037_S_4001 of "037_s_4001" and "037-S-4001", 12 of "12.0"; any other text as it is."""
    if match := re.fullmatch(r"([0-9]{3})[-_ ]S[-_ ]([0-9]{4,5})", text, re.IGNORECASE):
        return f"{match[1]}_S_{match[2]}"
    return re.sub(r"^([0-9]+)\.0+$", r"\1", text)


def years(text):
    """An age of 0 to 150 years: 71.5 of "71.5", "71,5", "71.5 years" or "71.5Y"; None for anything else, such as "90+"."""
    match = re.fullmatch(r"([0-9]{1,3}(?:[.,][0-9]+)?)\s*(?:y|yrs?|years?)?\.?", text, re.IGNORECASE)
    age = float(match[1].replace(",", ".")) if match else 150
    return age if age < 150 else None


def iso_date(text, day_first=False):
    """ "2011-05-03" of "2011-05-03_12_34_56.0", "20110503", "5/03/2011" (LONI's order, unless `day_first`) or "03.05.2011"; any
    other text as it is."""
    if found := re.match(r"([0-9]{4})([-/])([0-9]{1,2})\2([0-9]{1,2})(?![0-9])|((?:19|20)[0-9]{2})([0-9]{2})([0-9]{2})", text):
        year, month, day = found.group(1, 3, 4) if found[1] else found.group(5, 6, 7)
    elif found := re.match(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})(?![0-9])", text):
        day, _, month, year = found.groups()
        if found[2] != "." and not day_first and int(day) <= 12:
            day, month = month, day
    else:
        return text
    try:
        return datetime.date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return text


# ---------------------------------------------------------------------------------------------------------------------
# Reading a table


def read_subjects(path, quiet=False, flag="--subjects"):
    """{image: Scan} of a table; its warnings go to stderr, unless `quiet`.

    CSV with a header, LONI's or `image,subject`, separated by , ; | or tabs, in UTF-8, UTF-16 with its mark, or Windows-1252; lines
    above the header are left out. An image is what `image_id` takes, such as the path of a slice in the subjects.csv of phantom.py;
    several rows of one image are merged. Also meta_data_with_label.json, and participants.tsv and sessions.tsv of BIDS, whose
    images are sub-01 and sub-01_ses-02. Rows that name no image are left out. An age that is no number of years is unknown.

    UserError, which begins with `flag` and the path: unreadable, empty or no text; no column of images or subjects, or two; a row
    whose image is none, that has no subject, or more cells than the header; rows of one image that contradict each other;
    quotation marks that do not match.
    """
    where, doubts = f"{flag} {path}".lstrip(), {}  # {what is said of them: [rows or entries]}
    try:
        text = read_text(where, path)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
    table = (read_metadata if text.lstrip()[:1] in ("{", "[") else read_rows)(where, text, doubts)
    for doubt, found in doubts.items():
        if not quiet:
            print(f"warning: {where}: {doubt} ({len(found)}): {some_of(found, 5)}", file=sys.stderr)
    return table


def read_text(where, path):
    """The text of a table: UTF-16 by its byte order mark, else UTF-8, else Windows-1252."""
    with open(path, "rb") as file:
        data = file.read(MAX_TABLE + 1)
    if len(data) > MAX_TABLE:
        raise UserError(f"{where}: too large for a table of scans (more than {MAX_TABLE} bytes)")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    if sum(not (c.isprintable() or c.isspace()) for c in text[:4096]) > len(text[:4096]) / 20:
        raise UserError(f"{where}: not a text file (a workbook, a picture?); save the table as CSV, and give that")
    return text


def cells_of(row):
    """The cells of a row, without quotation marks around them, and without empty ones at its end."""
    cells = [re.sub(QUOTES, "", cell) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def find_header(where, lines):
    """(number of the line of the header, its cells, {field of COLUMNS: number of its column}, delimiter); UserError if none."""
    shown = None
    for number, line in enumerate(lines[:HEADER_WITHIN]):
        for delimiter in sorted(DELIMITERS, key=line.count, reverse=True):
            header = cells_of(next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)))
            names = [re.sub(r"[\W_]+", "", name).casefold() for name in header]
            known = {field: next((name for name in known if name in names), None) for field, known in COLUMNS.items()}
            if "participantid" in names or known["image"] and known["person"]:
                if twice := next((name for name in known.values() if name and names.count(name) > 1), None):
                    raise UserError(f"{where}: two columns are called {header[names.index(twice)]}; remove one")
                return number, header, {field: names.index(name) for field, name in known.items() if name}, delimiter
            if shown is None and line.strip() and not line.startswith("sep="):
                missing = [title for field, title in NEEDED.items() if not known[field]]
                shown = f"no column {' and no column '.join(missing)}; its first line is {printable(', '.join(header))[:200]}"
    raise UserError(f"{where}: {shown or 'empty; it should be a CSV with the columns ' + ' and '.join(NEEDED.values())}")


def read_rows(where, text, doubts):
    """{image: Scan} of the text of a CSV or TSV; rows without an image are left out, and named in `doubts` as odd ages are."""
    lines = io.StringIO(text, newline=None).readlines()  # lines end in \n, \r\n or \r
    try:
        above, header, columns, delimiter = find_header(where, lines)
        rows = list(split_rows(where, lines, above, header, delimiter))
    except csv.Error as error:
        raise UserError(f"{where}: not a CSV file, or its quotation marks do not match ({error})") from None
    rows = [(line, {field: row[i] if i < len(row) else "" for field, i in columns.items()}) for line, row in rows]
    needed = "image" if "image" in columns else "person"
    nameless = [f"line {line}" for line, cells in rows if cells[needed].casefold() in UNKNOWN]
    rows = [(line, cells) for line, cells in rows if cells[needed].casefold() not in UNKNOWN]
    if not rows:
        raise UserError(f"{where}: there are no rows below its header{' that name an image' if nameless else ''}")
    slashed = [re.match(r"([0-9]{1,2})[/-]([0-9]{1,2})[/-]", cells.get("date", "")) for _, cells in rows]
    day_first = any(date and int(date[1]) > 12 for date in slashed)
    table, first, odd = {}, {}, []
    for line, cells in rows:
        scan = read_scan(f"{where}: line {line}", cells, day_first)
        if scan.age is None and cells.get("age", "").casefold() not in UNKNOWN:
            odd.append(f"line {line} {cells['age'][:20]!r}")
        if scan.image in table:
            scan = merge(f"{where}: lines {first[scan.image]} and {line}", table[scan.image], scan)
        table[scan.image], first[scan.image] = scan, line
    titles = "rows that name no image are left out", "ages that are not a number of years count as unknown"
    doubts |= {title: found for title, found in zip(titles, (nameless, odd)) if found}
    return table


def split_rows(where, lines, above, header, delimiter):
    """Yield (line number, cells) of the rows below the header that `find_header` found; UserError or csv.Error if they misfit."""
    rows, line = csv.reader(lines[above:], delimiter=delimiter, strict=True, skipinitialspace=True), above + 1
    for row in map(cells_of, rows):
        if any(delimiter in cell and "\n" in cell for cell in row):
            raise UserError(f"{where}: line {line}: a quotation mark is not closed, so that lines run together; correct it")
        if len(row) > len(header):
            counts = f"{len(row)} cells, but the header has {len(header)}; a cell with {delimiter!r} needs quotes"
            raise UserError(f"{where}: line {line}: {counts}")
        if row and row != header:
            yield line, row
        line = above + rows.line_num + 1


def read_scan(where, cells, day_first):
    """The Scan in a row's cells {field: text}; UserError, which begins with `where`, for one without image or subject."""
    known = {field: text for field, text in cells.items() if text.casefold() not in UNKNOWN}
    session = known.pop("session", None)
    if "image" not in cells:  # BIDS
        known["person"] = "sub-" + known["person"].removeprefix("sub-")
        known["image"] = known["person"] + (f"_ses-{session.removeprefix('ses-')}" if session else "")
    image = known["image"]
    known["image"] = image_id(image)
    if not known["image"]:
        raise UserError(f"{where}: {image[:80]!r} is neither an Image Data ID such as I218391 nor a file such as 218391_78.jpeg")
    if not known.get("person"):
        raise UserError(f"{where}: image {image} has no subject")
    if re.fullmatch(r"[0-9]([.,][0-9]+)?[eE][+-]?[0-9]+", known["person"]):
        raise UserError(f"{where}: a spreadsheet has shortened the subject {known['person']}; format its column as text")
    known["person"] = person_id(known["person"])
    if "sex" in known:
        known["sex"] = known["sex"][0].upper()
    if "age" in known:
        known["age"] = years(known["age"])
    if "date" in known:
        known["date"] = iso_date(known["date"], day_first)
    return Scan(**known)


def merge(where, before, scan):
    """One Scan of two rows of one image; UserError, which begins with `where`, if they contradict each other."""
    for field, a, b in zip(Scan._fields, before, scan):
        if None not in (a, b) and a != b:
            raise UserError(f"{where} contradict each other: image {scan.image} has {field} {a} and {b}; correct or remove one")
    return Scan(*(b if a is None else a for a, b in zip(before, scan)))


def read_metadata(where, text, doubts):
    """{image: Scan} of ADNI's meta_data_with_label.json, {image ID: {"raw": path with the person and the date, "label": 0 to 2}}.

    Entries that tell no person are left out and named in `doubts`, as unknown labels are. UserError if nothing is left.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON file ({printable(str(error))[:100]})") from None
    table = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        entry = entry if isinstance(entry, dict) else {}
        raw, label = str(entry.get("raw", "")), str(entry.get("label", ""))
        image, person = image_id(key), ADNI_PERSON.search(re.split(r"[/\\]", raw)[-1]) or ADNI_PERSON.search(raw)
        if not image or not person:
            doubts.setdefault("entries without an image ID, or a person in raw, are left out", []).append(key[:40])
            continue
        if label not in LABELS:
            doubts.setdefault("labels other than 0, 1 and 2 count as unknown", []).append(f"{label[:20]!r} of {key[:40]}")
        scan = Scan(image, person[0].upper(), LABELS.get(label), date=date_in(raw))
        table[image] = merge(f"{where}: entries of one image", table[image], scan) if image in table else scan
    if not table:
        example = '"218391": {"raw": "ADNI_037_S_4001_...", "label": 2}'
        raise UserError(f"{where}: no entry such as {example}; give such a file or a CSV")
    return table


def date_in(path):
    """The first date in a path, 2011-05-03 or 20110503 with or without a time after it, as "2011-05-03"; None without one.

    Dates with hyphens come first: LONI's folders of scans have them, and the digits in its file names may be of a later conversion.
    """
    found = re.findall(r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}", path) + re.findall(r"(?<![0-9A-Za-z])(?:19|20)[0-9]{6}", path)
    days = (iso_date(text.replace("-", "")) for text in found)
    return next((day for day in days if "-" in day), None)  # iso_date keeps what is no day
