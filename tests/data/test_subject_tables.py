"""Tables as people have them: encodings, spreadsheets' habits, odd ages, IDs and dates, ADNI's JSON and BIDS; what is refused."""

import codecs
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.subject_tables import Scan, date_in, image_id, iso_date, read_subjects, scan_id, years
from utils import UserError

TABLE = "Image Data ID,Subject,Group,Sex,Age,Acq Date\nI200,müller,AD,F,71.5,5/03/2011\nI215,037_S_4002,CN,M,72,4/18/2011\n"
SCANS = {
    "200": Scan("200", "müller", "AD", "F", 71.5, "2011-05-03"),
    "215": Scan("215", "037_S_4002", "CN", "M", 72.0, "2011-04-18"),
}
QUOTED = '"' + TABLE.strip().replace(",", '","').replace("\n", '"\n"') + '"\n'
SEMICOLONS = TABLE.replace(",", ";").replace("71.5", "71,5")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.fixture
def read(tmp_path):
    return lambda content, name="people.csv": read_subjects(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be"),
        TABLE.replace(",", "\t").encode("utf-16"),  # "Unicode text" of Excel
        TABLE.encode("cp1252"),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        TABLE.replace("\n", "\n\n"),
        TABLE.replace(",", "|"),
        TABLE.replace(",", ", "),
        "sep=;\n" + SEMICOLONS,
        '"sep=,"\r\n' + TABLE,
        "sep=\t\n" + TABLE.replace(",", "\t"),
        SEMICOLONS,
        QUOTED.replace("71.5", "71,5"),
        "\n \n" + TABLE,
        'Scans of our study, 2011\n"a remark, unclosed\n\n' + TABLE,
        "ADNI;;;;;\n" + SEMICOLONS,
        TABLE.replace("\n", ",,,\n"),
        SEMICOLONS.replace("\n", ";\n"),
        TABLE + TABLE,
        TABLE.replace("Image Data ID", "IMAGE_DATA.ID").replace("Acq Date", "acqDate").replace("Age", "Age (years)"),
        TABLE.replace("Group", "Visit,Research Group").replace("AD", "sc,AD").replace("CN", "bl,CN"),
        TABLE.replace("Group", "Notes,Group,Notes").replace("AD", "a,AD,b").replace("CN", "c,CN,d"),
        TABLE.replace("Sex", "Description,Sex").replace("F", '"MPRAGE\n""repeat""",F').replace("M,72", "MPRAGE 5',M,72"),
        TABLE.replace("I200", '="0200"').replace("I215", "'215"),
        QUOTED.replace('"', "'"),
        QUOTED.replace('"', "“"),
        TABLE.replace("I200", "200.0"),
        TABLE.replace("Sex", "x" * 100_000 + ",Sex").replace("F", "y" * 100_000 + ",F").replace("M,72", ",M,72"),
        "\n".join(line + ',"' + "z" * 100_000 + '"' for line in TABLE.splitlines()),
    ],
)
def test_the_same_table_is_read_however_it_was_saved(read, content, capsys):
    assert read(content) == SCANS and not capsys.readouterr().err


@pytest.mark.parametrize(
    "text, image",
    [
        ("I218391", "218391"),
        ("i0218391", "218391"),
        ("218391.0", "218391"),
        ("218391,00", "218391"),
        ("000", "0"),
        ("AD/I218391_78.jpeg", "218391"),
        ("sub-01", "sub-01"),
        ("sub-01_ses-02_T1w_90.jpeg", "sub-01_ses-02_T1w"),
        ("2.184E+05", None),  # a spreadsheet has shortened it
        ("218.000", None),  # 218 or 218000
        ("218391.5", None),
        ("218,39", None),
        ("-4", None),
        ("S13408", None),
        ("５", None),
        ("", None),
    ],
)
def test_image_id_is_read_as_spreadsheets_write_it_or_not_at_all(text, image):
    assert image_id(text) == image


@pytest.mark.parametrize(
    "name, image",
    [
        ("AD/sub-01_90.jpeg", "sub-01"),
        ("sub-01_T1w_90.png", "sub-01_T1w"),
        ("deep\\sub-ADNI037S4001_ses-m06_run-1_T1w_090.png", "sub-ADNI037S4001_ses-m06_run-1_T1w"),
        ("sub-01_ses-02.png", "sub-01_ses-02"),
        ("sub-_90.png", None),
        ("mysub-01_90.png", None),
        ("sub-01/mild_90.png", None),
    ],
)
def test_scan_id_of_bids_names(name, image):
    assert scan_id(name) == image


AGES = {"71.5": 71.5, "71,5": 71.5, "71.5 years": 71.5, "071Y": 71.0, "0": 0.0, "149": 149.0}
ODD_AGES = "90+", ">89", "old", "-4", "999", "150", "inf", "1940", "5/03/1940", "7_1", "1e9999", "71.5.2", "018M", "٧١"


def test_one_person_is_one_however_spelt(read):
    people = "037_S_4001", "037_s_4001", "037-S-4001", "037 S 4001", "12", "12.0", "12.5", "P1", "p1"
    found = read("image,subject\n" + "".join(f"{i},{person}\n" for i, person in enumerate(people)))
    assert [scan.person for scan in found.values()] == ["037_S_4001"] * 4 + ["12", "12", "12.5", "P1", "p1"]


def test_years_of_ages_and_of_none():
    assert {text: years(text) for text in AGES} == AGES
    assert [text for text in ODD_AGES if years(text) is not None] == []


def test_an_odd_age_is_unknown_with_one_warning_that_counts_and_names_the_first(read, tmp_path, capsys):
    ages = ["71", *ODD_AGES, *"unknown N/A nan -".split(), "", "72"]
    found = read("image;subject;age\n" + "".join(f"{i};p{i};{age}\n" for i, age in enumerate(ages)))
    assert len(found) == len(ages) and {image for image, scan in found.items() if scan.age is not None} == {"0", str(len(ages) - 1)}
    assert capsys.readouterr().err == (
        f"warning: --subjects {tmp_path / 'people.csv'}: ages that are not a number of years count as unknown ({len(ODD_AGES)}): "
        f"line 3 '90+', line 4 '>89', line 5 'old', line 6 '-4', line 7 '999' and {len(ODD_AGES) - 5} more\n"
    )
    assert read_subjects(str(tmp_path / "people.csv"), quiet=True) == found and not capsys.readouterr().err


def test_rows_that_name_no_image_are_left_out_with_a_warning(read, tmp_path, capsys):
    assert read("image,subject,age\n,,years\n1,a,70\nn/a,b,71\n") == {"1": Scan("1", "a", age=70.0)}
    warning = f"warning: --subjects {tmp_path / 'people.csv'}: rows that name no image are left out (2): line 2, line 4\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(
    "text",
    ["2011-05-03", "5/03/2011", "20110503", "2011-05-03_12_34_56.0", "20110503123456789", "2011/5/3", "3.5.2011"]
    + ["2011-05-03T12:34:56", "5/3/2011 12:34:56 AM", "5-3-2011"],
)
def test_iso_date_is_equal_for_one_day(text):
    assert iso_date(text) == "2011-05-03"


def test_iso_date_keeps_what_is_no_date_and_takes_days_first_where_told():
    for text in ("", "m06", "2011", "2011-13-45", "20111345", "5/2011", "1/2/3", "5/03/201", "05/03/11", "3-May-2011"):
        assert iso_date(text) == text
    assert iso_date("5/03/2011", day_first=True) == "2011-03-05" and iso_date("13/05/2011") == "2011-05-13"


def test_days_come_first_in_the_whole_table_if_they_do_in_one_row(read):
    found = read("image,subject,date\n1,a,05/03/2011\n2,a,18/04/2011\n3,a,2011-03-05\n")
    assert [scan.date for scan in found.values()] == ["2011-03-05", "2011-04-18", "2011-03-05"]


def excel():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    return file.getvalue()


def picture():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (excel(), "not a text file .* save the table as CSV"),
        (picture(), "not a text file"),
        ("", "empty"),
        ("image,person\n1,a\n", "no column Subject; its first line is image, person"),
        ("image,subject\n1,a\n2\n", "line 3: image 2 has no subject"),
        ("image,subject\n1,a\n2,b\nI1,c\n", "lines 2 and 4 contradict each other: image 1 has person a and c"),
        ("image,subject,group\n1,a,AD\n1,a,MCI\n", "lines 2 and 3 .* group AD and MCI"),
        ("image,subject\n1," + "a" * 200_000 + "\n", "not a CSV"),
        ("sep=;\n", "empty"),
        ("Bild-ID;Proband\n1;a\n", "no column Image Data ID .*; its first line is Bild-ID, Proband"),
        (TABLE.splitlines()[0], "no rows"),
        ("image,subject\n1,ann\n2,bob,x\n", "line 3: 3 cells, but the header has 2"),
        ('image,subject\n1,"ann\n2,bob\n3,carl\n', "quotation marks do not match"),
        ('image,subject\n1,"ann\n2,bob"\n', "line 2: a quotation mark is not closed"),
        ('image,subject,note\n1,ann,"x\n2,bob,y"\n', "line 2: a quotation mark is not closed"),
        ('"image","subject"\n"1","ann\n"2","bob"\n', "quotation marks do not match"),
        ("image,subject,subject\n1,ann,bob\n", "two columns are called subject; remove one"),
        ("\n\nremark\nimage,subject\n\n1,a\nx7,b\n", "line 7: 'x7' is neither"),
        ("participant_id\tage\nn/a\t30\n", "no rows below its header that name an image"),
        ("image,subject\n1,n/a\n", "line 2: image 1 has no subject"),
        ("image,subject\n1,1.23E+05\n", "line 2: a spreadsheet has shortened the subject 1.23E\\+05; format"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("{}", "no entry such as"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(read, tmp_path, content, message):
    with pytest.raises(UserError, match=message) as refused:
        read(content)
    assert str(refused.value).startswith(f"--subjects {tmp_path / 'people.csv'}: ")
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


# ---------------------------------------------------------------------------------------------------------------------
# ADNI's meta_data_with_label.json

RAW = {
    "100": "ADNI_037_S_4001_MR_MPRAGE_br_raw_20110503123456789_5_S107861_I100.nii",
    "101": "/data/ADNI/037_S_4001/MPRAGE/2011-05-03_12_34_56.0/S1/ADNI_037_S_4001_MR_Br_20120101111111111_I101.nii",
    "102": "D:\\ADNI\\MPRAGE_002_s_10295_20060418.nii",
    "103": "2007-01-02/ADNI_002_S_0295.nii",
    "104": "x/941_S_1195/scan.nii",
}


def entry(raw, label):
    return {"raw": raw, "masked": "m/" + raw, **{f"c{i}": f"c{i}{raw}" for i in range(1, 6)}, "label": label}


def test_metadata_gives_people_groups_and_dates(read, capsys):
    entries = {image: entry(raw, label) for (image, raw), label in zip(RAW.items(), (2, 2, 0, 1, "0"))}
    assert read(json.dumps(entries, indent=1)) == {
        "100": Scan("100", "037_S_4001", "AD", date="2011-05-03"),
        "101": Scan("101", "037_S_4001", "AD", date="2011-05-03"),
        "102": Scan("102", "002_S_10295", "CN", date="2006-04-18"),
        "103": Scan("103", "002_S_0295", "MCI", date="2007-01-02"),
        "104": Scan("104", "941_S_1195", "CN"),
    }
    assert not capsys.readouterr().err


def test_metadata_with_odd_entries_is_read_without_them(read, capsys):
    entries = {"I100": entry(RAW["100"], 2), "101": entry("scan.nii", 2), "102": None, "x": entry(RAW["100"], 0)}
    entries |= {"103": entry(RAW["103"], 7), "104": {"raw": RAW["104"]}}
    found = read(json.dumps(entries).encode("utf-8-sig"))
    assert {image: scan.group for image, scan in found.items()} == {"100": "AD", "103": None, "104": None}
    left_out, odd = capsys.readouterr().err.splitlines()
    assert left_out.endswith("are left out (3): 101, 102, x") and odd.endswith("count as unknown (2): '7' of 103, '' of 104")


def test_metadata_that_gives_a_scan_to_two_people_is_refused(read):
    one, other = entry(RAW["100"], 2), entry(RAW["102"], 2)
    with pytest.raises(UserError, match="entries of one image contradict each other: image 100 has person"):
        read(json.dumps({"100": one, "I100": other}))
    assert list(read(json.dumps({"100": one, "I0100": one}))) == ["100"]


def test_date_in_a_path_is_a_day_that_exists():
    assert date_in("99999999_20111345_20110503.nii") == date_in("I20120101/2011-13-45/20110503") == "2011-05-03"
    assert date_in("002_S_0295/I20110503/S20110504.nii") is None


# ---------------------------------------------------------------------------------------------------------------------
# BIDS

PARTICIPANTS = "participant_id\tage\tgender\tgroup\nsub-01\t39\tm\tdepr\n02\tn/a\tf\tcontrol\nsub-03\t89+\tF\tHC\n"


def test_participants_are_read_with_their_groups_as_given(read, capsys):
    assert read(PARTICIPANTS, "participants.tsv") == {
        "sub-01": Scan("sub-01", "sub-01", "depr", "M", 39.0),
        "sub-02": Scan("sub-02", "sub-02", "control", "F"),
        "sub-03": Scan("sub-03", "sub-03", "HC", "F"),
    }
    assert "line 4 '89+'" in capsys.readouterr().err


def test_the_person_of_a_participants_table_is_its_participant_id(read):
    assert read("subject\tparticipant_id\nx7\tsub-01\n", "participants.tsv") == {"sub-01": Scan("sub-01", "sub-01")}


def test_sessions_are_scans_of_their_participants(read):
    table = "participant_id\tsession_id\tacq_time\tage\nsub-01\tses-1\t2011-05-03T12:00:00\t39\nsub-01\t2\tn/a\t40.5\n"
    assert read(table, "sessions.tsv") == {
        "sub-01_ses-1": Scan("sub-01_ses-1", "sub-01", age=39.0, date="2011-05-03"),
        "sub-01_ses-2": Scan("sub-01_ses-2", "sub-01", age=40.5),
    }
