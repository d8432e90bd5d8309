"""The databases of the task: what tables and columns each of them has."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

COUNTRIES = ("France", "Brazil", "Japan", "Kenya", "Canada")
CITIES = ("Paris", "Lima", "Oslo", "Delhi", "Boston")
COLORS = ("red", "blue", "green", "black", "white")


@dataclass(frozen=True, slots=True)
class Table:
    """One table. Every table also has an `id`; its label names a row and is unique in the table."""

    name: str
    plural: str
    label: str
    categories: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[int, int]]  # inclusive range of the values, which are unique in the table


@dataclass(frozen=True, slots=True)
class Schema:
    """A database of two tables: each row of `child` belongs to one row of `parent`."""

    name: str
    parent: Table
    child: Table

    @property
    def foreign_key(self) -> str:
        """The column of `child` that holds the `id` of its parent."""
        return f"{self.parent.name}_id"

    def columns(self, table: Table) -> tuple[str, ...]:
        """All columns of a table of this schema, in order."""
        keys = ("id", self.foreign_key) if table is self.child else ("id",)
        return (*keys, table.label, *table.categories, *table.numbers)

    def ddl(self) -> str:
        """The schema as the model reads it; one line a table, without types: tokens are time."""
        return "\n".join(f"{table.name}({', '.join(self.columns(table))})" for table in (self.parent, self.child))


def _table(
    name: str, plural: str, label: str, categories: dict[str, tuple[str, ...]], numbers: dict[str, tuple[int, int]]
) -> Table:
    return Table(name, plural, label, MappingProxyType(categories), MappingProxyType(numbers))


TRAIN_SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "music",
        _table("singer", "singers", "name", {"country": COUNTRIES}, {"age": (18, 79)}),
        _table("album", "albums", "title", {"genre": ("rock", "jazz", "pop", "folk")}, {"price": (5, 60)}),
    ),
    Schema(
        "school",
        _table(
            "teacher", "teachers", "name", {"subject": ("math", "art", "physics", "music")}, {"salary": (900, 2400)}
        ),
        _table("pupil", "pupils", "name", {"city": CITIES}, {"score": (1, 100)}),
    ),
    Schema(
        "shop",
        _table("brand", "brands", "name", {"country": COUNTRIES}, {"founded": (1890, 2015)}),
        _table("product", "products", "name", {"color": COLORS}, {"price": (5, 200), "weight": (1, 90)}),
    ),
    Schema(
        "airline",
        _table("airport", "airports", "name", {"country": COUNTRIES}, {"runways": (1, 40)}),
        _table("flight", "flights", "code", {"status": ("late", "early", "closed")}, {"distance": (200, 9000)}),
    ),
    Schema(
        "library",
        _table("author", "authors", "name", {"country": COUNTRIES}, {"born": (1880, 2000)}),
        _table("book", "books", "title", {"language": ("French", "English", "Spanish")}, {"pages": (80, 900)}),
    ),
    Schema(
        "hospital",
        _table("doctor", "doctors", "name", {"ward": ("heart", "bone", "skin", "eye")}, {"salary": (2000, 9000)}),
        _table("patient", "patients", "name", {"city": CITIES}, {"age": (1, 99)}),
    ),
    Schema(
        "zoo",
        _table("keeper", "keepers", "name", {"shift": ("day", "night", "evening")}, {"age": (20, 70)}),
        _table("animal", "animals", "name", {"species": ("lion", "bear", "wolf", "seal")}, {"weight": (2, 600)}),
    ),
    Schema(
        "league",
        _table("team", "teams", "name", {"city": CITIES}, {"titles": (0, 60)}),
        _table("player", "players", "name", {"position": ("guard", "center", "forward")}, {"goals": (0, 120)}),
    ),
    Schema(
        "company",
        _table("department", "departments", "name", {"city": CITIES}, {"budget": (10, 900)}),
        _table("employee", "employees", "name", {"role": ("clerk", "engineer", "analyst")}, {"salary": (900, 9000)}),
    ),
    Schema(
        "garage",
        _table("owner", "owners", "name", {"city": CITIES}, {"age": (18, 90)}),
        _table("car", "cars", "model", {"color": COLORS}, {"speed": (90, 320), "year": (1960, 2023)}),
    ),
    Schema(
        "cinema",
        _table("director", "directors", "name", {"country": COUNTRIES}, {"awards": (0, 50)}),
        _table("movie", "movies", "title", {"genre": ("drama", "comedy", "horror")}, {"length": (60, 240)}),
    ),
    Schema(
        "farm",
        _table("field", "fields", "name", {"soil": ("clay", "sand", "loam")}, {"area": (1, 90)}),
        _table("crop", "crops", "name", {"season": ("spring", "summer", "autumn")}, {"yield": (5, 500)}),
    ),
    Schema(
        "hotel",
        _table("hotel", "hotels", "name", {"city": CITIES}, {"stars": (1, 40)}),
        _table("guest", "guests", "name", {"country": COUNTRIES}, {"nights": (1, 60)}),
    ),
    Schema(
        "bank",
        _table("branch", "branches", "name", {"city": CITIES}, {"opened": (1900, 2020)}),
        _table("account", "accounts", "holder", {"kind": ("savings", "current", "loan")}, {"balance": (10, 9999)}),
    ),
    Schema(
        "port",
        _table("harbor", "harbors", "name", {"country": COUNTRIES}, {"depth": (5, 90)}),
        _table("ship", "ships", "name", {"type": ("ferry", "tanker", "yacht")}, {"length": (10, 400)}),
    ),
    Schema(
        "gallery",
        _table("artist", "artists", "name", {"style": ("cubism", "baroque", "realism")}, {"age": (20, 95)}),
        _table("painting", "paintings", "title", {"color": COLORS}, {"price": (50, 5000), "year": (1700, 2020)}),
    ),
)

HELD_OUT_SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "restaurant",
        _table("chef", "chefs", "name", {"cuisine": ("Thai", "Italian", "Greek")}, {"experience": (1, 50)}),
        _table("dish", "dishes", "name", {"course": ("starter", "main", "dessert")}, {"calories": (80, 1500)}),
    ),
    Schema(
        "university",
        _table("professor", "professors", "name", {"faculty": ("law", "biology", "history")}, {"age": (28, 80)}),
        _table("student", "students", "name", {"major": ("chemistry", "geology", "music")}, {"credits": (5, 240)}),
    ),
    Schema(
        "games",
        _table("studio", "studios", "name", {"country": COUNTRIES}, {"staff": (3, 900)}),
        _table("game", "games", "title", {"platform": ("phone", "console", "desktop")}, {"rating": (1, 100)}),
    ),
    Schema(
        "city",
        _table("district", "districts", "name", {"zone": ("north", "south", "center")}, {"population": (900, 90000)}),
        _table("park", "parks", "name", {"surface": ("grass", "gravel", "forest")}, {"size": (1, 300)}),
    ),
    Schema(
        "space",
        _table("agency", "agencies", "name", {"country": COUNTRIES}, {"budget": (10, 990)}),
        _table("satellite", "satellites", "name", {"orbit": ("low", "medium", "high")}, {"mass": (20, 7000)}),
    ),
)
