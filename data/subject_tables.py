"""Tables of who was scanned, as people have them: CSV from LONI or a spreadsheet, ADNI's meta_data_with_label.json, TSV of BIDS.

    table = read_subjects("idaSearch.csv")      # {"218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "2011-05-03"), ...}

What cannot be told is None, with one warning; what could give a scan to another person is rejected, in one line.
"""

import codecs
import csv
import datetime
import io
import itertools
import json
import os
import re
import sys
from typing import NamedTuple

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
HEADER_WITHIN = 20  # lines that are not blank: a title and remarks may come before the header
MAX_TABLE = 2**26  # bytes, of some 400,000 scans
UNKNOWN = "", "-", "--", ".", "?", "n/a", "#n/a", "nan", "na", "<na>", "none", "null", "nil", "unknown", "missing", "not available"
LABELS = {"0": "CN", "1": "MCI", "2": "AD"}  # of meta_data_with_label.json
ADNI_PERSON = re.compile(r"(?<![0-9])[0-9]{3}_S_[0-9]{4,5}(?![0-9])", re.IGNORECASE)
QUOTES = r"""^[='"‘’“”\s]+|['"‘’“”\s]+$"""  # around a cell: ="218391" and '218391 keep spreadsheets from reading a number
BIDS = r"sub-[A-Za-z0-9+-]+(?:_[A-Za-z0-9+-]+)*"
BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MONTHS = {month: i + 1 for i, month in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split())}


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
    """The scan in a cell: an Image Data ID however spreadsheets write it (I218391, 00218391, 218391.0, 218,391, 2.18391E+05), the
    file name of a slice, or a BIDS name; None for anything else, numbers that were shortened (2.18E+05) among them."""
    number = re.sub(r"[.,]0{1,2}$|(?<=[0-9]{4})[.,]0+$", "", text)
    if power := re.fullmatch(r"([0-9])(?:[.,]([0-9]+))?[eE]\+?([0-9]{1,2})", number):
        decimals, exponent = power[2] or "", int(power[3])
        if len(decimals) < exponent or decimals[exponent:].strip("0"):
            return None
        number = power[1] + decimals[:exponent]
    elif re.fullmatch(r"[0-9]{1,3}([.,'’\s])[0-9]{3}(\1[0-9]{3})*", number) and not re.fullmatch(r"[0-9]+[.,]000", number):
        number = re.sub("[^0-9]", "", number)
    if plain := re.fullmatch(r"[Ii]?([0-9]+)", number):
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
    """ "2011-05-03" of "2011-05-03_12_34_56.0", "20110503", "5/03/2011" (LONI's order, unless `day_first`), "03.05.2011" or
    "3-May-2011"; any other text as it is."""
    a, b, c = (*re.findall(r"[0-9]+|[A-Za-z]+", text), "", "", "")[:3]
    months = {word: str(MONTHS.get(word[:3].casefold(), word)) for word in (a, b)}
    if re.match("(19|20)[0-9]{6}", a):
        year, month, day = a[:4], a[4:6], a[6:8]
    elif len(a) == 4:
        year, month, day = a, months[b], c
    elif a.isalpha():
        year, month, day = c, months[a], b
    elif b.isalpha() or text[len(a) : len(a) + 1] == "." or day_first or a > "12" and len(a) == 2:
        year, month, day = c, months[b], a
    else:
        year, month, day = c, a, b
    if len(year) == 2:
        year = ("20" if year < "69" else "19") + year
    try:
        return datetime.date.fromisoformat(f"{year}-{month:0>2}-{day:0>2}").isoformat()
    except ValueError:
        return text


# ---------------------------------------------------------------------------------------------------------------------
# Reading a table


class Notes(NamedTuple):
    """What is doubtful in the tables that are read together, as texts for `first_of`."""

    nameless: list[str]  # rows, or entries of JSON, that are left out
    ages: list[str]  # that are no number of years
    labels: list[str]  # of JSON, that are unknown


def read_subjects(path, quiet=False, flag="--subjects"):
    """{image: Scan} of a table; its warnings go to stderr, unless `quiet`.

    CSV with a header, LONI's or `image,subject`, separated by , ; | or tabs, in UTF-8, UTF-16 or Windows-1252; lines above the
    header are left out. An image is what `image_id` takes, such as the path of a slice in the subjects.csv of phantom.py; several
    rows of one image are merged. Also meta_data_with_label.json, and participants.tsv and sessions.tsv of BIDS, whose images are
    sub-01 and sub-01_ses-02; tables of sessions beside participants.tsv are read with it. Rows that name no image are left out. An
    age that is no number of years is unknown.

    UserError, which begins with `flag` and the path: unreadable, empty or no text; no column of images or subjects; a row whose
    image is none, that has no subject, or more cells than the header; rows of one image, or columns of one name, that contradict
    each other; quotation marks that do not match.
    """
    where, notes = f"{flag} {path}".lstrip(), Notes([], [], [])
    try:
        text = read_text(where, path)
        if text.lstrip()[:1] in ("{", "["):
            table, nameless = read_metadata(where, text, notes), "entries without an image ID, or a person in raw,"
        else:
            table, nameless = read_rows(where, path, text, notes), "rows that name no image"
            for sessions in session_files(path):
                of_sessions = f"{flag} {sessions}".lstrip()
                more = read_rows(of_sessions, sessions, read_text(of_sessions, sessions), notes)
                table |= {image: fill(scan, table.get(scan.person, Scan())) for image, scan in more.items()}
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
    ages = "ages that are not a number of years count as unknown"
    texts = f"{nameless} are left out", ages, "labels other than 0, 1 and 2 count as unknown"
    for text, found in zip(texts, notes):
        if found and not quiet:
            print(f"warning: {where}: {text} ({len(found)}): {first_of(found)}", file=sys.stderr)
    return table


def first_of(names, limit=5):
    """The first names as text: "a, b and 3 more"."""
    return printable(", ".join(names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_text(where, path):
    """The text of a table, by its byte order mark, by zeros in every second byte (UTF-16), as UTF-8, or else as Windows-1252."""
    with open(path, "rb") as file:
        data = file.read(MAX_TABLE)
        if file.read(1):
            raise UserError(f"{where}: too large for a table of scans (more than {MAX_TABLE} bytes)")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if not encoding:
        even, odd = (data[i:4096:2].count(0) / max(len(data[i:4096:2]), 1) for i in (0, 1))
        encoding = "utf-16-le" if odd > 0.5 > even + 0.4 else "utf-16-be" if even > 0.5 > odd + 0.4 else "utf-8"
    try:
        text = data.decode(encoding, "strict" if encoding == "utf-8" else "replace")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    text = text.replace("\0", "").replace("\ufeff", "")  # files that were put together have marks in the middle
    if sum(not (c.isprintable() or c.isspace()) for c in text[:4096]) > len(text[:4096]) / 20:
        raise UserError(f"{where}: not a text file (a workbook, a picture?); save the table as CSV, and give that")
    return text


def split_rows(text, delimiter):
    """Yield (line number, cells) of rows that are not empty; of a row that is quoted as a whole, its cells; csv.Error."""

    def read(text):
        return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)

    rows, line = read(text), 1
    for row in rows:
        if len(row) == 1 and delimiter in row[0]:
            row = next(read(row[0]))
        while row and not row[-1].strip():
            row.pop()
        if row:
            yield line, [re.sub(QUOTES, "", cell) for cell in row]
        line = rows.line_num + 1


def find_header(where, text, owner):
    """(header, {field of COLUMNS: [numbers of its columns]}, delimiter, where the header starts in `text`); UserError if none.

    owner: whom a table of sessions is about.
    """
    best = None
    for line in itertools.islice(re.finditer(r"[^\r\n]+", text), HEADER_WITHIN):
        for delimiter in DELIMITERS:
            try:
                header = next(split_rows(line[0], delimiter), (1, []))[1]
            except csv.Error:
                header = line[0].split(delimiter)
            names = [re.sub(r"[\W_]+", "", name).casefold() for name in header]
            named = {field: next((name for name in known if name in names), None) for field, known in COLUMNS.items()}
            columns = {field: [i for i, other in enumerate(names) if other == name] for field, name in named.items() if name}
            missing = [field for field in NEEDED if field not in columns]
            if "participantid" in names or owner and "session" in columns:
                missing = []
            key = -len(missing), len(header)
            if header and (best is None or key > best[0]) and not re.fullmatch(r'"?sep=.*', line[0], re.IGNORECASE):
                best = key, missing, (header, columns, delimiter, line.start())
        if best and not best[1]:
            return best[2]
    if best is None:
        raise UserError(f"{where}: empty; it should be a CSV with the columns {' and '.join(NEEDED.values())}")
    titles, shown = " and no column ".join(NEEDED[field] for field in best[1]), printable(", ".join(best[2][0]))[:200]
    raise UserError(f"{where}: no column {titles}; its first line is {shown}")


def read_rows(where, path, text, notes):
    """{image: Scan} of the text of a CSV or TSV; rows without an image are left out, and named in `notes` as odd ages are."""
    owner = owner_of(path)
    header, columns, delimiter, start = find_header(where, text, owner)
    rows = list(cells_of(where, text, header, columns, delimiter, start))
    place = f"{os.path.basename(path)} line" if owner else "line"
    needed = "image" if "image" in columns else "session" if owner else "person"
    nameless = [f"{place} {line}" for line, cells in rows if cells[needed].casefold() in UNKNOWN]
    rows = [(line, cells) for line, cells in rows if cells[needed].casefold() not in UNKNOWN]
    if not rows:
        raise UserError(f"{where}: there are no rows below its header{' that name an image' if nameless else ''}")
    notes.nameless.extend(nameless)
    slashed = [re.match(r"([0-9]{1,2})[/-]([0-9]{1,2})[/-]", cells.get("date", "")) for _, cells in rows]
    day_first = any(date and int(date[1]) > 12 for date in slashed)
    table, lines = {}, {}
    for line, cells in rows:
        scan = read_scan(f"{where}: line {line}", cells, owner, day_first)
        if scan.age is None and cells.get("age", "").casefold() not in UNKNOWN:
            notes.ages.append(f"{place} {line} {cells['age'][:20]!r}")
        if before := table.get(scan.image):
            scan = merge(f"{where}: lines {lines[scan.image]} and {line}", before, scan)
        table[scan.image], lines[scan.image] = scan, line
    return table


def cells_of(where, text, header, columns, delimiter, start):
    """Yield (line number, {field: text}) of the rows below the header that `find_header` found; UserError if they do not fit it."""
    above = len(re.findall(r"\r\n|\r|\n", text[:start]))
    try:
        for line, row in split_rows(text[start:], delimiter):
            line_of = f"{where}: line {line + above}"
            if any(delimiter in cell and re.search(r"[\r\n]", cell) for cell in row):
                raise UserError(f"{line_of}: a quotation mark is not closed, so that lines run together; correct it")
            if len(row) > len(header):
                text = f"{len(row)} cells, but the header has {len(header)}; a cell with {delimiter!r} needs quotes"
                raise UserError(f"{line_of}: {text}")
            if row != header:
                yield line + above, {field: read_cell(line_of, header, row, numbers) for field, numbers in columns.items()}
    except csv.Error as error:
        raise UserError(f"{where}: not a CSV file, or its quotation marks do not match ({error})") from None


def read_cell(where, header, row, columns):
    """The text of a row in the columns of one name, of which most tables have one; UserError if two differ."""
    found = {row[i]: None for i in columns if i < len(row) and row[i]}
    if len(found) > 1:
        raise UserError(f"{where}: columns of one name, {header[columns[0]]}, hold {first_of(list(found))}; remove one")
    return next(iter(found), "")


def read_scan(where, cells, owner, day_first):
    """The Scan in a row's cells {field: text}; UserError, which begins with `where`, for one without image or subject."""
    known = {field: text for field, text in cells.items() if text.casefold() not in UNKNOWN}
    session = known.pop("session", None)
    if "image" not in cells:  # BIDS
        person = owner or known.get("person")
        known["person"] = person and "sub-" + person.removeprefix("sub-")
        known["image"] = "_".join(filter(None, (known["person"], session and "ses-" + session.removeprefix("ses-"))))
    image = known.get("image", "")
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
    return fill(scan, before)


def fill(scan, other):
    """`scan` with what it lacks from `other`."""
    return Scan(*(b if a is None else a for a, b in zip(scan, other)))


def owner_of(path):
    """The person whom a table of BIDS sessions is about: "sub-01" of "sub-01/sub-01_sessions.tsv"; None for another file."""
    match = re.fullmatch(r"(sub-[A-Za-z0-9+-]+)_sessions\.tsv", os.path.basename(path), re.IGNORECASE)
    return match and match[1]


def session_files(path):
    """The tables of BIDS sessions beside `path`, a participants.tsv, and in the folders sub-*; none beside another file."""
    if os.path.basename(path).casefold() != "participants.tsv":
        return []
    root = os.path.dirname(path) or "."
    folders = [root, *(os.path.join(root, name) for name in sorted(os.listdir(root)) if name.startswith("sub-"))]
    files = [os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in sorted(os.listdir(folder))]
    return [file for file in files if owner_of(file) or os.path.basename(file).casefold() == "sessions.tsv"]


def read_metadata(where, text, notes):
    """{image: Scan} of ADNI's meta_data_with_label.json, {image ID: {"raw": path with the person and the date, "label": 0 to 2}}.

    Entries that tell no person are left out and named in `notes`. UserError if nothing is left.
    """
    try:
        entries = json.loads(text, object_pairs_hook=dictionary)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON file ({printable(str(error))[:100]})") from None
    table = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        raw = str(entry.get("raw", "")) if isinstance(entry, dict) else ""
        image, person = image_id(key), ADNI_PERSON.search(re.split(r"[/\\]", raw)[-1]) or ADNI_PERSON.search(raw)
        if not image or not person:
            notes.nameless.append(key[:40])
            continue
        label = str(entry.get("label", "")).strip().removesuffix(".0")
        word = isinstance(entry.get("label"), str) and label.isalpha() and label.casefold() not in UNKNOWN
        group = LABELS.get(label) or (label if word else None)
        if not group:
            notes.labels.append(f"{label[:20]!r} of {key[:40]}")
        scan = Scan(image, person[0].upper(), group, date=date_in(raw))
        table[image] = merge(f"{where}: entries of one image", table[image], scan) if image in table else scan
    if not table:
        example = '"218391": {"raw": "ADNI_037_S_4001_...", "label": 2}'
        raise UserError(f"{where}: no entry such as {example}; give such a file or a CSV")
    return table


def dictionary(pairs):
    """The dictionary of (key, value) pairs of a JSON object; ValueError if values of one key differ."""
    result = {}
    for key, value in pairs:
        if result.setdefault(key, value) != value:
            raise ValueError(f"two values of {key[:40]!r}")
    return result


def date_in(path):
    """The first date in a path, 2011-05-03 or 20110503 with or without a time after it, as "2011-05-03"; None without one.

    Dates with hyphens come first: LONI's folders of scans have them, and the digits in its file names may be of a later conversion.
    """
    for pattern in (r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}", r"(?<![0-9A-Za-z])(?:19|20)[0-9]{6}"):
        for digits in (found.replace("-", "") for found in re.findall(pattern, path)):
            if (date := iso_date(digits)) != digits:
                return date
    return None
