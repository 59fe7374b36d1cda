"""Random damage to files, reproducible from a seed."""

import random

PAGE = 4096


def mutate(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Damage the content of a file. `other` is a file of the same kind."""
    size = len(content)
    # Names, sizes and checksums are few of the bytes of a large file: a share of the flipped bits goes there.
    places = [range(size), range(min(3000, size)), range(max(0, size - 6000), size)]
    if chance.random() < 0.45:
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, chance.randrange(2, 40)])):
            damaged[chance.choice(chance.choice(places))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    at, length = chance.randrange(size), chance.choice([1, 2, 7, 64, 512, PAGE, 3 * PAGE])
    page, later_page = sorted((at // PAGE * PAGE, chance.randrange(size) // PAGE * PAGE))
    between = content[page + PAGE : later_page]
    swapped = content[later_page : later_page + PAGE] + between + content[page : page + PAGE]
    junk = chance.choice([other, b"\n", bytes(PAGE)])
    return chance.choice(
        [
            content[: chance.choice([at, page, chance.choice(places[2])])],
            content[:page] + swapped + content[later_page + PAGE :] if page < later_page else content,
            content[:page] + bytes(min(PAGE, size - page)) + content[page + PAGE :],
            content[:at] + chance.randbytes(length) + content[at:],
            content[:at] + content[at + length :],
            content[: at + length] + content[at:],
            content[:at] + chance.randbytes(min(length, size - at)) + content[at + length :],
            content[: max(page, PAGE)] + other[max(page, PAGE) :],
            content + junk,
            junk + content,
            content + content,
        ]
    )
