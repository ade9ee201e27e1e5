# SPDX-License-Identifier: Apache-2.0
"""Text templates: configuration of the boot loaders, the disc's README, pages.

A template's first lines say what it is for and which variables it takes.  A variable that is
not given is an error, never an empty place.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    autoescape=lambda name: name is not None and ".html" in name,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **variables: object) -> str:
    """Return the template `name` ("grub.cfg.j2") filled in.

    Raises:
        jinja2.UndefinedError: a variable is missing.
        jinja2.TemplateNotFound: the template does not exist.
    """
    return _environment.get_template(name).render(**variables)
