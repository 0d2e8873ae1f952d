"""What BABILong's questions are introduced with: what its facts are about, how to use them, and examples.

Answers have the form that the suite's own examples have: sentences in qa1 to qa3, then a word.
"""

from __future__ import annotations

from collections.abc import Mapping

_HEAD = (
    "The text below comes from books. Between its sentences stand short facts about {about}.\n\nExamples:\n"
)
_TAIL = "\n\nAnswer in the form of the examples, and write nothing else.\n\nText:\n"

_GO = "where people go. Of a person the last fact counts"
_CARRY = (
    "where people go, and what they pick up and put down. A thing is where the person is who carries it, or "
    "where it was put down"
)
_HOLD = "what people pick up, put down and give away. What a person carries at the end counts"

_TEXTS: Mapping[str, tuple[str, str]] = {
    "qa1": (
        _GO,
        """\
Ruth went to the cellar. Otto walked to the attic. Ruth moved to the garage. Where is Ruth?
Answer: Ruth is in the garage.
Nils moved to the stable. Ruth went to the attic. Where is Nils?
Answer: Nils is in the stable.""",
    ),
    "qa2": (
        _CARRY,
        """\
Ruth went to the cellar. Ruth took the lamp. Ruth moved to the attic. Where is the lamp?
Answer: The lamp is in the attic.
Otto took the coat. Otto went to the stable. Otto dropped the coat. Otto left for the yard. Where is the coat?
Answer: The coat is in the stable.""",
    ),
    "qa3": (
        _CARRY,
        """\
Ruth took the lamp. Ruth went to the cellar. Ruth moved to the attic. Where was the lamp before the attic?
Answer: Before the attic the lamp was in the cellar.
Otto went to the garage. Otto took the coat. Otto left for the stable. Where was the coat before the stable?
Answer: Before the stable the coat was in the garage.""",
    ),
    "qa4": (
        "how places lie to each other. Mind which way round the question asks",
        """\
The cellar is north of the attic. The garage is south of the attic. What is north of the attic?
Answer: cellar
The stable is east of the cellar. The attic is west of the cellar. What is the stable east of?
Answer: cellar""",
    ),
    "qa5": (
        "who gives what to whom. The last such fact counts",
        """\
Ruth took the lamp. Ruth handed the lamp to Otto. Who did Ruth give the lamp to?
Answer: Otto
Nils took the coat. Nils gave the coat to Ruth. What did Nils give to Ruth?
Answer: coat
Otto took the lamp. Otto passed the lamp to Nils. Who gave the lamp to Nils?
Answer: Otto""",
    ),
    "qa6": (
        _GO,
        """\
Ruth went to the cellar. Ruth moved to the attic. Is Ruth in the cellar?
Answer: no
Otto went to the garage. Ruth went to the attic. Is Otto in the garage?
Answer: yes""",
    ),
    "qa7": (
        _HOLD,
        """\
Ruth took the lamp. Ruth took the coat. How many objects is Ruth carrying?
Answer: two
Otto took the lamp. Otto handed the lamp to Nils. How many objects is Otto carrying?
Answer: none""",
    ),
    "qa8": (
        _HOLD,
        """\
Ruth took the lamp. Ruth took the coat. What is Ruth carrying?
Answer: lamp,coat
Otto took the lamp. Otto dropped the lamp. What is Otto carrying?
Answer: nothing""",
    ),
    "qa9": (
        "where people are, and where they are no longer. Of a person the last fact counts",
        """\
Ruth is in the cellar. Ruth is no longer in the cellar. Is Ruth in the cellar?
Answer: no
Otto went to the attic. Ruth is not in the attic. Is Otto in the attic?
Answer: yes""",
    ),
    "qa10": (
        "where people are, some of them in one place or another. Of a person the last fact counts",
        """\
Ruth is either in the cellar or the attic. Is Ruth in the attic?
Answer: maybe
Otto is in the garage. Is Otto in the garage?
Answer: yes
Nils is in the stable. Is Nils in the cellar?
Answer: no""",
    ),
}


def introduction(task: str) -> str:
    """What stands before the text."""
    about, examples = _TEXTS[task]
    return f"{_HEAD.format(about=about)}{examples}{_TAIL}"
