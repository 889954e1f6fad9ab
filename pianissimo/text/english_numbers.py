"""English numbers as they are spoken, read word by word: "twenty five dollars" is "$25".

Each `_read_…` function looks at the words from one place on. It returns where the number ends and
how it is written, or None. The cost grows with the length of the text, because words that are read
or refused are never read again.
"""

from collections.abc import Iterator, Sequence

LEAST_DIGITS = 7
"""Of a telephone number: fewer digits in a row may be anything."""
MOST_AS_WORD = 12
"""A whole number up to this stays a word unless a unit follows."""

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = (
    "january february march april may june july august september october november december".split()
)

_DIGIT = {word: number for number, word in enumerate(DIGITS)}
_SPOKEN_DIGIT = _DIGIT | {"oh": 0, "o": 0}
_TEEN = {word: number for number, word in enumerate(TEENS, start=10)}
_TEN = {word: 10 * number for number, word in enumerate(TENS, start=2)}
_SCALE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBERS = frozenset([*_DIGIT, *_TEEN, *_TEN, "hundred", *_SCALE])
_ORDINAL = {
    word: number
    for number, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
        start=1,
    )
}
_ORDINAL |= {f"{word}th": number for word, number in _TEEN.items() if number > 12}
_ORDINAL |= {f"{word[:-1]}ieth": number for word, number in _TEN.items()}
_ENDING = {1: "st", 2: "nd", 3: "rd"}
_DECADE = {f"{word[:-1]}ies": number for word, number in _TEN.items()} | {"tens": 10, "hundreds": 0}

_CURRENCY: dict[tuple[str, ...], str] = {
    ("dollars",): "$",
    ("dollar",): "$",
    ("euros",): "€",
    ("euro",): "€",
    ("pounds", "sterling"): "£",
    ("yen",): "¥",
    ("rupees",): "₹",
}
_CENTS = frozenset(["cent", "cents"])
_LEAST_CENTS = 3
"""Fewer cents stay words: "my two cents"."""

_METERS = {"meters": "m", "kilometers": "km", "centimeters": "cm", "millimeters": "mm"}
_METERS |= {name.replace("meters", "metres"): unit for name, unit in _METERS.items()}
_SYMBOLS: dict[tuple[str, ...], str] = {(name,): unit for name, unit in _METERS.items()}
_SYMBOLS |= {("square", name): f"{unit}²" for name, unit in _METERS.items()}
_SYMBOLS |= {("cubic", name): f"{unit}³" for name, unit in _METERS.items()}
_SYMBOLS |= {(name, "per", "hour"): f"{unit}/h" for name, unit in _METERS.items()}
_SYMBOLS |= {(name, "per", "second"): f"{unit}/s" for name, unit in _METERS.items()}
_SYMBOLS |= {
    tuple(name.split()): unit
    for name, unit in {
        "miles per hour": "mph",
        "grams": "g",
        "kilograms": "kg",
        "milligrams": "mg",
        "milliliters": "ml",
        "millilitres": "ml",
        "kilobytes": "KB",
        "megabytes": "MB",
        "gigabytes": "GB",
        "terabytes": "TB",
        "hertz": "Hz",
        "kilohertz": "kHz",
        "megahertz": "MHz",
        "gigahertz": "GHz",
        "kilowatts": "kW",
        "megawatts": "MW",
        "kilowatt hours": "kWh",
        "decibels": "dB",
        "degrees celsius": "°C",
        "degrees fahrenheit": "°F",
    }.items()
}
_WORD_UNITS = frozenset(
    "pounds ounces tons miles feet inches yards acres liters litres gallons degrees volts watts "
    "calories euros dollars pence".split()
)
"""Units that stay words; a number of any size before them is written in digits."""
_LONGEST_UNIT = max(map(len, _SYMBOLS))
_NUMBERED = frozenset(
    "room flight number route highway gate code pin channel extension suite apartment unit bus "
    "line building interstate zip".split()
)
"""Words before digits that are said one by one and belong together: "room three oh two"."""

_Read = tuple[int, str] | None
"""The index behind the last word of a number, and the number as it is written."""


def written_numbers(words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """The numbers in lower-case words, as (first, end, text): `text` in place of words[first:end].

    Two numbers side by side may be anything ("twenty four seven"); both stay words.
    """
    place = 0
    while place < len(words):
        found = _read(words, place)
        if found is not None and not _beside_number(words, place, found[0]):
            yield place, found[0], found[1]
            place = found[0]
        elif words[place] in _NUMBERS:  # refused: its other words are no number of their own
            place = found[0] if found else place + 1
            while place < len(words) and (words[place] in _NUMBERS or words[place] in _ORDINAL):
                place += 1
        else:
            place += 1


def _read(words: Sequence[str], place: int) -> _Read:
    if words[place] in ("plus", "minus", "negative"):
        if place and (words[place - 1] in _NUMBERS or words[place - 1] == "plus"):
            return None  # a calculation
        if words[place] == "plus":
            return _read_digits(words, place)
        found = _read_quantity(words, place + 1, small=True)
        return None if found is None else (found[0], f"-{found[1]}")
    return (
        _read_date(words, place)
        or _read_digits(words, place)
        or _read_year(words, place)
        or _read_ordinal(words, place)
        or _read_quantity(words, place)
    )


def _beside_number(words: Sequence[str], first: int, end: int) -> bool:
    beside = [*words[max(0, first - 1) : first], *words[end : end + 1]]
    return any(word in _NUMBERS or word[:1].isdigit() for word in beside)


def _word(words: Sequence[str], place: int) -> str:
    return words[place] if place < len(words) else ""


def _below_hundred(words: Sequence[str], place: int) -> tuple[int, int] | None:
    """The index behind a number from 0 to 99, and the number."""
    word = _word(words, place)
    if word in _TEN:
        digit = _DIGIT.get(_word(words, place + 1), 0)
        return (place + 2, _TEN[word] + digit) if digit else (place + 1, _TEN[word])
    number = _DIGIT.get(word, _TEEN.get(word))
    return None if number is None else (place + 1, number)


def _below_thousand(words: Sequence[str], place: int) -> tuple[int, int] | None:
    """The same from 0 to 999, also "fifteen hundred"; "a hundred and six" has one hundred."""
    if _word(words, place) == "a" and _word(words, place + 1) == "hundred":
        found = place + 1, 1
    else:
        below = _below_hundred(words, place)
        if below is None or _word(words, below[0]) != "hundred" or below[1] % 10 == 0:
            return below
        found = below
    end, number = found[0] + 1, found[1] * 100
    joined = _word(words, end) == "and"
    rest = _below_hundred(words, end + joined)
    if rest is None or not rest[1] or _word(words, rest[0]) == "hundred":
        return end, number
    return rest[0], number + rest[1]


def _cardinal(words: Sequence[str], place: int) -> tuple[int, int] | None:
    """The index behind a whole number below 10^15, and the number."""
    found = None
    number, end, least = 0, place, 10**15
    while True:
        joined = found is not None and _word(words, end) == "and"
        part = _below_thousand(words, end + joined)
        if part is None:
            return found
        scale = _SCALE.get(_word(words, part[0]), 1)
        if scale >= least or (found and not part[1]):
            return found  # "two thousand three thousand" is two numbers
        end, number, least = part[0] + (scale > 1), number + part[1] * scale, scale
        found = end, number
        if scale == 1:
            return found


def _read_quantity(words: Sequence[str], place: int, *, small: bool = False) -> _Read:
    """A whole or decimal number with its unit; `small` numbers without one are written too."""
    found = _cardinal(words, place)
    if found is None:
        return None
    end, number = found
    written, decimal = str(number), False
    fraction = _fraction(words, end)
    if fraction is not None and number < 1000:
        (end, digits), decimal = fraction, True
        written = f"{number}.{digits}"
    large = _word(words, end - 1) if not decimal else _word(words, end)
    if large in _SCALE and large != "thousand":  # "2.5 million" and "3 million", not "3000000"
        before = None if decimal else _below_thousand(words, place)
        if decimal:
            written, end = f"{written} {large}", end + 1
        elif before is not None and before[0] == end - 1:
            written = f"{before[1]} {large}"
    with_unit = _with_unit(words, end, written, number, decimal)
    if with_unit is not None:
        return with_unit
    if words[place] == "a" and end - place == 2:
        return None  # "a hundred people"
    return (end, written) if decimal or small or number > MOST_AS_WORD else None


def _fraction(words: Sequence[str], place: int) -> tuple[int, str] | None:
    """The index behind "point one four", and its digits."""
    if _word(words, place) != "point":
        return None
    end, digits = place + 1, ""
    while _word(words, end) in _SPOKEN_DIGIT:
        digits += str(_SPOKEN_DIGIT[words[end]])
        end += 1
    if not digits:
        below = _below_hundred(words, end)
        return None if below is None else (below[0], str(below[1]))
    return end, digits


def _with_unit(words: Sequence[str], place: int, written: str, number: int, decimal: bool) -> _Read:
    """A number that ends before `place`, with the unit behind it."""
    unit = _word(words, place)
    if unit in _CENTS and not decimal and _LEAST_CENTS <= number < 100:
        return place + 1, f"$0.{number:02d}"
    for length in (2, 1):
        name = tuple(words[place : place + length])
        sign = _CURRENCY.get(name)
        if sign is not None:
            end = place + len(name)
            joined = _word(words, end) == "and"
            cents = None if decimal else _below_hundred(words, end + joined)
            if cents is not None and cents[1] and _word(words, cents[0]) in _CENTS:
                return cents[0] + 1, f"{sign}{written}.{cents[1]:02d}"
            return end, f"{sign}{written}"
    if unit == "percent":
        return place + 1, f"{written}%"
    if unit == "per" and _word(words, place + 1) == "cent":
        return place + 2, f"{written}%"
    if number == 1 and not decimal:
        return None  # "one kilometer away"
    for length in range(_LONGEST_UNIT, 0, -1):
        name = tuple(words[place : place + length])
        symbol = _SYMBOLS.get(name)
        if symbol is not None:
            return place + len(name), f"{written} {symbol}"
    if unit in _WORD_UNITS and number >= 10:
        return place + 1, f"{written} {unit}"
    return None


def _read_digits(words: Sequence[str], place: int) -> _Read:
    """A telephone number, or the number of a room and the like: digits said one by one."""
    end, digits = place, ""
    plus = words[place] == "plus"
    end += plus
    while True:
        word = _word(words, end)
        if word in _SPOKEN_DIGIT:
            digits += str(_SPOKEN_DIGIT[word])
        elif word == "hundred" and end > place and words[end - 1] in _DIGIT and len(digits) <= 2:
            digits += "00"
        else:
            break
        end += 1
    if end == place or (words[place] in ("oh", "o") and len(digits) < LEAST_DIGITS):
        return None
    if len(digits) < LEAST_DIGITS:
        numbered = place > 0 and words[place - 1] in _NUMBERED and len(digits) == end - place
        return (end, digits) if numbered and len(digits) >= 3 else None
    if plus:
        local = len(digits) == 11 and digits[0] == "1"
        return end, f"+1 {_american(digits[1:])}" if local else f"+{digits}"
    if len(digits) == 11 and digits[0] == "1":
        return end, f"1-{_american(digits[1:])}"
    return end, _american(digits) if len(digits) == 10 else digits


def _american(digits: str) -> str:
    return f"{digits[:3]}-{digits[3:6]}-{digits[6:]}"


def _read_year(words: Sequence[str], place: int) -> _Read:
    """A year that is spoken in two halves, or its decade; from 1600 to 2099."""
    century = 20 if words[place] == "twenty" else _TEEN.get(words[place], 0)
    if not 16 <= century <= 20:
        return None
    word = _word(words, place + 1)
    if word in _DECADE:
        return place + 2, f"{century}{_DECADE[word]:02d}s"
    if word in ("oh", "o") and _DIGIT.get(_word(words, place + 2), 0):
        return place + 3, f"{century}0{_DIGIT[words[place + 2]]}"
    below = _below_hundred(words, place + 1)
    if below is None or below[1] < 10 or _word(words, below[0]) in ("hundred", *_SCALE):
        return None
    return below[0], f"{century}{below[1]}"


def _year(words: Sequence[str], place: int) -> _Read:
    """A year of a date, in two halves or as a number from 1600 to 2099."""
    if place >= len(words):
        return None
    found = _read_year(words, place)
    if found is not None:
        return None if found[1].endswith("s") else found
    number = _cardinal(words, place)
    return (number[0], str(number[1])) if number and 1600 <= number[1] < 2100 else None


def _ordinal(words: Sequence[str], place: int) -> tuple[int, int] | None:
    """The index behind an ordinal number, and its value."""
    word = _word(words, place)
    if word in _ORDINAL:
        return place + 1, _ORDINAL[word]
    if word in _TEN and _ORDINAL.get(_word(words, place + 1), 10) < 10:
        return place + 2, _TEN[word] + _ORDINAL[words[place + 1]]
    if word == "hundred" and place and words[place - 1] == "the":
        number, end = 100, place + 1
    else:
        found = _cardinal(words, place)
        if found is None:
            return None
        end, number = found
    if _word(words, end) in ("hundredth", "thousandth") and number < 10:
        return end + 1, number * (100 if words[end] == "hundredth" else 1000)
    if number % 100 and _word(words, end - 1) in _TEN and _ORDINAL.get(_word(words, end), 10) < 10:
        return end + 1, number + _ORDINAL[words[end]]
    end += _word(words, end) == "and"
    rest = None if number % 100 else _ordinal_below_hundred(words, end)
    return None if rest is None else (rest[0], number + rest[1])


def _ordinal_below_hundred(words: Sequence[str], place: int) -> tuple[int, int] | None:
    word = _word(words, place)
    if word in _TEN and _ORDINAL.get(_word(words, place + 1), 10) < 10:
        return place + 2, _TEN[word] + _ORDINAL[words[place + 1]]
    return (place + 1, _ORDINAL[word]) if word in _ORDINAL else None


def _read_ordinal(words: Sequence[str], place: int) -> _Read:
    """An ordinal number from "tenth" on."""
    found = _ordinal(words, place)
    if found is None or found[1] < 10:
        return None
    end, number = found
    if number % 100 in (11, 12, 13):
        return end, f"{number}th"
    return end, f"{number}{_ENDING.get(number % 10, 'th')}"


def _read_date(words: Sequence[str], place: int) -> _Read:
    """A day with its month, a month with its year, or all three."""
    if words[place] in MONTHS:
        return _read_month_first(words, place)
    first = place + (words[place] == "the")
    day = _ordinal_below_hundred(words, first)
    if day is None or day[1] > 31 or _word(words, day[0]) != "of":
        return None
    month = _word(words, day[0] + 1)
    if month not in MONTHS:
        return None
    year = _year(words, day[0] + 2)
    if year is None:
        return day[0] + 2, f"{day[1]} {month}"
    return year[0], f"{day[1]} {month} {year[1]}"


def _read_month_first(words: Sequence[str], place: int) -> _Read:
    month = words[place]
    year = _year(words, place + 1)
    if year is not None:
        return year[0], f"{month} {year[1]}"
    first = place + 1 + (_word(words, place + 1) == "the")
    day = _ordinal_below_hundred(words, first)
    ordinal = day is not None
    day = day or _below_hundred(words, first)
    if day is None or not 1 <= day[1] <= 31:
        return None
    year = _year(words, day[0])
    if year is not None:
        return year[0], f"{month} {day[1]} {year[1]}"
    verb = month in ("march", "may") or (place > 0 and words[place - 1] == "in")
    if not ordinal and (verb or _word(words, day[0]) in ("hundred", *_SCALE)):
        return None  # "i may one day", "in june twenty people"
    return day[0], f"{month} {day[1]}"
