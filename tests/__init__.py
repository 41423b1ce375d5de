"""How jaxtyping checks the project under pytest: beartype, with an int where a float is wanted."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
