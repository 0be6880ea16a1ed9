"""The vocabulary of the synthetic set, and draws that stay the same from one Python to the next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in text.split(", "))


NAMES = _words(
    "Tom Ann Ben Sue Max Kate Sam Lucy Jack Mary Paul Emma Fred Rose Bill Jane Hugo Nora Carl Ella Otto "
    "Ruth Leo Clara"
)
PLACES = _words(
    "kitchen garden park school house street market forest shop barn tower castle mill bridge church "
    "station harbour library farm village cave island museum theatre"
)
THINGS = _words(
    "cup ball book box bag lamp key letter basket bottle mirror candle clock carpet blanket pillow bell "
    "rope bucket kettle spoon picture ring map"
)
KINDS: dict[str, tuple[str, ...]] = {
    "fruit": _words("apple pear plum peach cherry grape lemon melon orange banana fig lime mango berry apricot"),
    "vegetable": _words(
        "carrot onion potato tomato cabbage pea bean leek pumpkin radish turnip pepper spinach beet"
    ),
    "bird": _words("robin crow owl eagle duck goose swan sparrow hawk parrot pigeon raven stork heron gull finch"),
    "fish": _words("trout salmon shark eel cod tuna carp perch pike herring sardine haddock"),
    "insect": _words("ant bee beetle moth wasp fly butterfly ladybird flea mosquito dragonfly grasshopper"),
    "animal": _words(
        "cow horse pig sheep goat donkey fox wolf bear deer lion tiger hare otter badger monkey zebra camel "
        "elephant rabbit mouse cat dog"
    ),
    "tool": _words("hammer saw drill spade rake axe knife shovel chisel wrench file ladder brush needle"),
    "garment": _words("hat coat shirt skirt dress scarf glove sock boot shoe belt jacket vest tie sweater apron"),
    "drink": _words("tea coffee water milk juice wine beer cider cocoa lemonade"),
    "flower": _words("tulip lily daisy violet orchid poppy iris lilac sunflower daffodil carnation pansy"),
    "tree": _words("oak pine birch elm ash beech willow maple cedar fir poplar chestnut walnut larch yew"),
    "colour": _words("red blue green black white yellow brown pink grey purple"),
    "metal": _words("iron gold silver copper tin lead zinc steel brass bronze nickel"),
    "instrument": _words("piano violin drum flute trumpet guitar harp cello organ horn tuba banjo oboe clarinet"),
    "sport": _words("tennis football golf hockey rugby boxing skiing rowing cycling swimming archery fencing"),
    "job": _words(
        "farmer teacher doctor baker nurse pilot sailor tailor butcher painter writer lawyer judge singer "
        "plumber miner"
    ),
    "vehicle": _words("car bus train lorry bicycle tram van taxi tractor boat ship ferry canoe scooter wagon"),
    "country": _words(
        "France Spain Italy Greece Norway Poland Russia India China Japan Egypt Kenya Brazil Chile Peru"
    ),
    "city": _words(
        "Paris London Rome Madrid Berlin Vienna Athens Oslo Moscow Cairo Delhi Tokyo Lima Dublin Boston"
    ),
    "river": _words("Nile Rhine Danube Thames Seine Amazon Volga Loire Tiber Elbe Ganges Congo Oder Rhone"),
    "body part": _words("arm leg hand foot nose ear eye knee elbow neck chin shoulder finger toe mouth"),
    "room": _words("bedroom bathroom hall cellar attic study pantry nursery office studio lounge lobby workshop"),
    "dish": _words(
        "soup stew salad pie pizza pasta curry omelette pancake sandwich pudding cake biscuit porridge"
    ),
    "relative": _words("mother father sister brother aunt uncle cousin niece nephew grandmother grandfather"),
}
"""Words of a kind; none stands in two kinds."""
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
OPPOSITES = dict(
    pair.split("/")
    for pair in _words(
        "big/small tall/short happy/sad fast/slow clean/dirty hot/cold loud/quiet strong/weak old/young "
        "rich/poor wet/dry thick/thin hard/soft heavy/light brave/timid full/empty dark/bright kind/cruel "
        "early/late sweet/sour"
    )
)
OPPOSITES.update({second: first for first, second in tuple(OPPOSITES.items())})
TRAITS = tuple(OPPOSITES)
MOODS = _words("hungry tired angry lucky busy lazy clever proud lonely famous")
STAYS = _words("slept sat waited played sang danced worked rested read stood")
TIMES = (
    "in the morning",
    "in the evening",
    "at night",
    "after lunch",
    "before dinner",
    "on Sunday",
    "in winter",
    "all day",
)

# Spanish, with the article, and its English.
NOUNS_ES = _pairs(
    "el gato/cat, el perro/dog, el caballo/horse, el zorro/fox, el lobo/wolf, el oso/bear, el pato/duck, "
    "el toro/bull, el cerdo/pig, el burro/donkey, la vaca/cow, la oveja/sheep, la cabra/goat, la "
    "rana/frog, la abeja/bee, la mosca/fly, el rey/king, la reina/queen, el hombre/man, la mujer/woman, "
    "la hermana/sister, el hermano/brother, el abuelo/grandfather, la abuela/grandmother, el "
    "vecino/neighbour, la maestra/teacher, el panadero/baker, el soldado/soldier"
)
SPOTS_ES = _pairs(
    "la casa/house, el parque/park, la escuela/school, el mercado/market, el bosque/forest, la "
    "torre/tower, el castillo/castle, el puente/bridge, la iglesia/church, la playa/beach, el mar/sea, la "
    "calle/street, la tienda/shop, el pueblo/village, la puerta/door, la mesa/table, la ventana/window, "
    "el jardín/garden, la cueva/cave, la isla/island"
)
TRAITS_ES = _pairs(
    "rojo/red, negro/black, blanco/white, amarillo/yellow, pequeño/small, viejo/old, nuevo/new, "
    "alto/tall, bajo/short, rico/rich, loco/mad, feo/ugly, bonito/pretty, bueno/good, malo/bad, "
    "limpio/clean, sucio/dirty, frío/cold, seco/dry, largo/long"
)
DEEDS_ES = _pairs(
    "duerme/sleeps, canta/sings, espera/waits, juega/plays, baila/dances, corre/runs, llora/cries, "
    "come/eats, bebe/drinks, trabaja/works, lee/reads, habla/speaks, sueña/dreams, salta/jumps"
)
WHERE_ES = _pairs("cerca de/near, detrás de/behind, en/in, delante de/in front of, lejos de/far from")

_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def number(value: int) -> str:
    """A number below a hundred in words.

    >>> number(7), number(40), number(99)
    ('seven', 'forty', 'ninety-nine')
    """
    if value < 20:
        return _ONES[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


NUMBERS = {number(value): value for value in range(100)}


def pick(generator: random.Random, options: Sequence[T]) -> T:
    """One option, each as likely; from `random()` alone, the one stream that Python promises to keep."""
    return options[int(generator.random() * len(options))]


def pick_several(generator: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different options, in the order drawn."""
    left = list(options)
    return [left.pop(int(generator.random() * len(left))) for _ in range(count)]


def listed(words: Sequence[str]) -> str:
    """An English list of at least two words.

    >>> listed(["cup", "dog", "hat"])
    'cup, dog and hat'
    """
    return f"{', '.join(words[:-1])} and {words[-1]}"


def sentence(text: str) -> str:
    """The text with a capital at its front and a full stop at its end.

    >>> sentence("the cat slept")
    'The cat slept.'
    """
    return text[0].upper() + text[1:] + "."
