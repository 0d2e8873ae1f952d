"""Wordings that a selection is judged by. Nothing may be tuned on them, nor may they be chosen by results."""

from __future__ import annotations

from typing import Final

TEXTS: Final[dict[str, dict[str, str | tuple[tuple[str, str], ...]]]] = {
    "ending": {
        "ending-none": "{document}\n\n{question}",
        "ending-inside": "{document}\n\n{stem}, as far as this document says?",
        "ending-brief": "{document}\n\n{question} Be brief, please.",
        "ending-nothing-besides": "{document}\n\n{question} Write down the {what} and nothing besides it.",
        "ending-form": (
            "{document}\n\n{question} I need it for a form, so reply with just the {what}, in one line, "
            "and leave everything else out."
        ),
        "ending-json": (
            '{document}\n\n{question} Format your reply as JSON with a single key named "result", and '
            "put no code fence round it."
        ),
        "ending-train": (
            "{document}\n\n{question} Sorry to bother you with such a small matter, but I have lost my "
            "notes and my train leaves in ten minutes, so a short reply will do."
        ),
        "ending-missing": (
            "{document}\n\n{question} Before you reply, go through it once more from top to bottom. If "
            "you come across the passage, copy only the {what} from it. If you do not, say that it is "
            "missing, and do not guess."
        ),
        "ending-rules": (
            "{document}\n\n{question}\n\nRules:\n- Use at most ten words.\n- Do not repeat what I "
            "asked.\n- Do not mention these rules.\n- Write plain text without bold type or lists.\n- "
            "Stay with what is written there, even if you happen to know better.\n- End with a full stop."
        ),
        "ending-colleague": (
            "{document}\n\n{question} My colleague swears that it is written somewhere in there, and I "
            "have been searching since lunch without any luck, which is why I turn to you now. It would "
            "be very kind if you could spare me another hour of reading. Many thanks in advance, and "
            "have a pleasant afternoon!"
        ),
    },
    "first": {
        "first-bare": "{question}\n\n{document}",
        "first-look-it-up": "I would like to know this: {question} Look it up in what follows.\n\n{document}",
        "first-label": (
            "Task: read the material and find out the following. {question}\n\nMaterial:\n\n{document}"
        ),
        "first-closing": (
            "{question} You will find that in here:\n\n{document}\n\nThat was all of it. What do you say?"
        ),
    },
    "both": {
        "both-twice": "{question}\n\n{document}\n\n{question}",
        "both-again": (
            "Somebody asked me: {question} I saved the pages where it must be.\n\n{document}\n\nSo, once "
            "more: {question} Keep it to one short sentence."
        ),
    },
    "several": {
        "several-two": "{document}\n\nI have two questions. {question} And {second}",
        "several-list": (
            "{document}\n\nFill in this list, one line for each entry:\n1. {question}\n2. {second}\n3. "
            "{third}"
        ),
    },
    "language": {
        "language-german": (
            "{document}\n\nBeantworte bitte diese Frage, und zwar so knapp wie möglich: {question} "
            "Schreib nur das Gesuchte hin, ohne ganzen Satz."
        ),
        "language-french": (
            "{document}\n\nD'après le texte ci-dessus, peux-tu répondre à cette question ? {question} "
            "Donne uniquement la réponse, sans explication."
        ),
        "language-spanish": (
            "{document}\n\nLee el texto con atención y contesta a lo siguiente: {question} Responde solo "
            "con el dato, por favor, y no añadas nada más."
        ),
        "language-chinese": "{document}\n\n请根据上面的文字回答下面的问题：{question} 只写出答案，不要解释。",  # noqa: RUF001
    },
    "ruler": {
        "ruler-memorize": (
            "A few special magic numbers are hidden in the text below. Keep them in mind: afterwards I "
            "am going to quiz you about one of them.\n\n{document}\n\n{stem} mentioned in the provided "
            "text?"
        ),
        "ruler-complete": (
            "Somewhere in this long text special magic numbers are given. Learn them by heart, for there "
            "will be a test.\n\n{document}\n\n{stem} given in the long text? Start your reply with the "
            "words: The special magic number is"
        ),
    },
    "few-shot": {
        "few-shot-after": (
            "{document}\n\nThese pairs show the style of a good reply.\n\nQ: What is the cabin number of "
            "Leopold?\nA: 6207\n\nQ: What did Hedwig plant beside the well?\nA: a quince tree\n\nQ: "
            "Which year is carved above the chapel in Brennau?\nA: 1744\n\nQ: {question}\nA:"
        ),
        "few-shot-turns": (
            ("user", "What is the parking space of Winifred? (Winifred parks her van in space 318.)"),
            ("assistant", "318"),
            ("user", "What did Casimir bring back from the fair? (Casimir came home with a copper kettle.)"),
            ("assistant", "a copper kettle"),
            ("user", "{document}\n\n{question}"),
        ),
    },
    "system": {
        "system-archive": (
            (
                "system",
                "You work in a reading room. Visitors hand you documents and ask about a detail. You "
                "reply with that detail, without comment, and never from memory.",
            ),
            ("user", "{document}\n\n{question}"),
        ),
        "system-document": (
            (
                "system",
                "All you know is the following record.\n\n{document}\n\nHelp the user with it, politely "
                "and in few words.",
            ),
            ("user", "Good morning! {question}"),
        ),
    },
    "follow-up": {
        "follow-up-next": (
            ("user", "{document}\n\n{second}"),
            ("assistant", "{second_answer}"),
            ("user", "And the next thing: {question}"),
        ),
        "follow-up-thanks": (
            ("user", "{document}\n\nSum up in a sentence what kind of text this is."),
            ("assistant", "It is a collection of notes in which some private details are mixed in."),
            (
                "user",
                "Great, that helps a lot. Now something more specific. {question} One line is enough, as "
                "I only want to copy it into my diary.",
            ),
        ),
    },
    "unmarked": {
        "unmarked-state": (
            "{document}\n\nState what the pages say about it: {stem}.\n\nWrite the bare {what}, with no "
            "comment."
        ),
        "unmarked-tags": (
            "<source>\n{document}\n</source>\n\n<task>\nLook up: {stem}\n</task>\n\n<style>\nA few "
            "words\n</style>"
        ),
        "unmarked-agreed": (
            "{document}\n\nI would like to have this from you: {stem}.\nLeave out everything but the "
            "{what}.\nIs that all right with you?"
        ),
        "unmarked-job": (
            "## Your job\nLocate the passage that tells it, and quote the {what}: {stem}.\n\n## The "
            "material\n{document}"
        ),
        "unmarked-first": "No small talk.\nReport one detail: {stem}.\n\n{document}\n\nReply:",
        "unmarked-system": (
            (
                "system",
                "Every message is a record out of which one detail is wanted: {stem}. Reply with that detail "
                "alone.",
            ),
            ("user", "{document}"),
        ),
    },
}
"""By family and name. The questions in the examples are about nothing that a document says."""
