"""The labeling server: people write demonstrations and rank replies, and nothing they did is lost.

Rooms, from the bottom up: `errors`, `ids`, `schema` (what is asked and what an answer looks like),
`tables` -> `audit` -> `store` (SQLite with one group-commit writer, or PostgreSQL) -> `people`,
`projects`, `assignment`, `work` (what happens in one transaction) -> `quality`, `export` ->
`web` (FastAPI, templates, static page) -> `server`, `commands`.
"""
