"""The administrators' pages."""

from fastapi import APIRouter

router = APIRouter()
