"""What a package of a library consists of, as text; NAME in braces is filled in."""

from collections.abc import Mapping

MODULE = '''"""{name} {version}: a library of intformer, head {head}, for {target}."""

from functools import cache
from pathlib import Path

import intformer

__version__ = "{version}"
PATH = Path(__file__).with_name("{file}")


@cache
def library():
    """Return the library, loaded at the first call."""
    return intformer.load(PATH)


def predict(texts, pairs=None, **options):
    """Return the answer for each text; arguments and answers are those of intformer.predict."""
    return list(intformer.predict(library(), texts, pairs, **options))
'''

METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: A transformer encoder as an integer-only library: head {head}, for {target}
Requires-Python: >=3.11
Requires-Dist: intformer>={intformer}
Description-Content-Type: text/plain

Build {build}.
"""

DOCKERFILE = """\
# docker build -t {name} . && docker run -p 8080:8080 {name}
# A key for clients: docker run -e INTFORMER_API_KEY=... Wheels in this folder, such as that of
# intformer, are installed from here, others from the registry.
FROM python:3.12-slim
COPY *.whl /wheels/
RUN pip install --no-cache-dir --find-links /wheels {name}=={version} "intformer[serve]"
RUN ln -s "$(python -c 'import {module}; print({module}.PATH)')" /{file}
USER nobody
EXPOSE 8080
HEALTHCHECK CMD python -c "from urllib.request import *; urlopen('http://localhost:8080/health')"
CMD ["intformer", "serve", "/{file}", "--host", "0.0.0.0", "--port", "8080"]
"""


def filled(text: str, about: Mapping[str, str]) -> str:
    """Return a text with the names in braces replaced."""
    return text.format_map(about)
