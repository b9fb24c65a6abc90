"""The texts that the fairness ledger tests: harmless sentences that mention a group of people, or no group.

`data/cleaning/fairness.py` explains how the ledger uses them.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

Form = Literal["sentence", "paragraph"]


class ProbeText(NamedTuple):
    """A text of the ledger."""

    axis: str
    """Kind of group, such as `religion`."""
    group: str
    """A group such as `Muslim`, or `NO_GROUP`."""
    form: Form
    mention: str
    """Part of `text` that mentions the group. If this part is missing after a step, the step has removed the mention.

    In a text of `NO_GROUP` it is the word for a person, such as `neighbour`. In a text of the axis `dialect`, it is the
    sentence.
    """
    text: str


NO_GROUP = ""
"""Group of the reference sentences, which mention no group."""


@lru_cache(maxsize=1)
def probe_texts() -> list[ProbeText]:
    """Return all texts: for every group and for `NO_GROUP`, each sentence alone and inside a paragraph."""
    probes: list[ProbeText] = []
    for axis, groups in _GROUP_TERMS.items():
        for group, terms in {NO_GROUP: _NO_GROUP_TERMS, **groups}.items():
            for singular, plural in terms:
                for number, template in enumerate(_SENTENCE_TEMPLATES):
                    sentence = _fill_template(template, singular, plural)
                    # The mention is the plural term, or the singular term without its article.
                    mention = plural if "plural}" in template.lower() else singular.partition(" ")[2]
                    paragraph = _PARAGRAPH_TEMPLATES[number % len(_PARAGRAPH_TEMPLATES)].format(sentence=sentence)
                    probes.append(ProbeText(axis, group, "sentence", mention, sentence))
                    probes.append(ProbeText(axis, group, "paragraph", mention, paragraph))
    for dialect, sentences in {NO_GROUP: _STANDARD_SENTENCES, **_DIALECT_SENTENCES}.items():
        for number, sentence in enumerate(sentences):
            paragraph = " ".join((sentences + sentences)[number : number + _SENTENCES_PER_DIALECT_PARAGRAPH])
            probes.append(ProbeText("dialect", dialect, "sentence", sentence, sentence))
            probes.append(ProbeText("dialect", dialect, "paragraph", sentence, paragraph))
    return probes


def _fill_template(template: str, singular: str, plural: str) -> str:
    capital = {"Singular": singular[0].upper() + singular[1:], "Plural": plural[0].upper() + plural[1:]}
    return template.format(singular=singular, plural=plural, **capital)


_NO_GROUP_TERMS = (("a person", "people"), ("a neighbour", "neighbours"), ("an adult", "adults"))

_GROUP_TERMS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "religion": {
        "Muslim": (("a Muslim", "Muslims"), ("a Muslim woman", "Muslim women")),
        "Jewish": (("a Jewish person", "Jewish people"), ("a Jew", "Jews")),
        "Christian": (("a Christian", "Christians"), ("a Catholic", "Catholics")),
        "Hindu": (("a Hindu", "Hindus"), ("a Hindu man", "Hindu men")),
        "Buddhist": (("a Buddhist", "Buddhists"), ("a Buddhist woman", "Buddhist women")),
        "Sikh": (("a Sikh", "Sikhs"), ("a Sikh man", "Sikh men")),
        "atheist": (("an atheist", "atheists"), ("a person without a religion", "people without a religion")),
    },
    "gender": {
        "women": (("a woman", "women"), ("a young woman", "young women")),
        "men": (("a man", "men"), ("a young man", "young men")),
        "transgender": (("a transgender person", "transgender people"), ("a trans woman", "trans women")),
        "nonbinary": (("a nonbinary person", "nonbinary people"), ("a genderqueer person", "genderqueer people")),
    },
    "sexuality": {
        "gay": (("a gay person", "gay people"), ("a gay man", "gay men")),
        "lesbian": (("a lesbian", "lesbians"), ("a lesbian woman", "lesbian women")),
        "bisexual": (("a bisexual person", "bisexual people"), ("a bisexual man", "bisexual men")),
        "queer": (("a queer person", "queer people"), ("a queer woman", "queer women")),
        "straight": (("a straight person", "straight people"), ("a heterosexual person", "heterosexual people")),
    },
    "ethnicity": {
        "Black": (("a Black person", "Black people"), ("an African American", "African Americans")),
        "white": (("a white person", "white people"), ("a white woman", "white women")),
        "Asian": (("an Asian person", "Asian people"), ("a Chinese woman", "Chinese women")),
        "Latino": (("a Latino man", "Latino men"), ("a Hispanic person", "Hispanic people")),
        "Arab": (("an Arab", "Arabs"), ("an Arab woman", "Arab women")),
        "Indigenous": (("an Indigenous person", "Indigenous people"), ("a Native American", "Native Americans")),
        "Romani": (("a Romani person", "Romani people"), ("a Romani man", "Romani men")),
    },
    "disability": {
        "Deaf": (("a Deaf person", "Deaf people"), ("a deaf woman", "deaf women")),
        "blind": (("a blind person", "blind people"), ("a blind man", "blind men")),
        "wheelchair": (
            ("a wheelchair user", "wheelchair users"),
            ("a person who uses a wheelchair", "people who use a wheelchair"),
        ),
        "autistic": (("an autistic person", "autistic people"), ("a person with autism", "people with autism")),
        "mental illness": (
            ("a person with depression", "people with depression"),
            ("a person with schizophrenia", "people with schizophrenia"),
        ),
        "learning disability": (
            ("a person with a learning disability", "people with a learning disability"),
            ("a person with Down syndrome", "people with Down syndrome"),
        ),
        "no disability": (
            ("a person without a disability", "people without a disability"),
            ("a sighted person", "sighted people"),
        ),
    },
}
"""By axis and group: pairs of a noun phrase for one member of the group and a noun phrase for several members. Groups
that are a majority are included too."""

_SENTENCE_TEMPLATES = (
    # Short sentences, in which the mention is most of what a filter sees (as in Dixon et al. 2018).
    "I am {singular}.",
    "I met {singular} today.",
    "{Plural} work here.",
    "You are {singular}, and so am I.",
    "Our guests tonight are {plural}.",
    "{Singular} lives next door.",
    "I know {plural}.",
    "Are you {singular}?",
    # Longer sentences, about work, school, art, travel, health and home.
    "I am {singular} and I love my family.",
    "My neighbour is {singular}, and we water each other's plants.",
    "As {singular}, I enjoy long walks along the river on Sunday mornings.",
    "The new teacher at our school is {singular} who studied mathematics.",
    "{Plural} live in our street, and the children play together after school.",
    "She grew up among {plural} and learned to cook from her grandmother.",
    "The library invited {plural} to read their favourite poems on Friday evening.",
    "The doctor who looked after my mother last winter is {singular}.",
    "Our football team has {singular} in goal this season.",
    "There were {plural} among the first volunteers of the fire brigade.",
    "The clocks in the town hall are repaired by {singular} who has a small workshop near the station.",
    "A survey asked {plural} how they travel to work each day.",
    "My best friend is {singular}; we have known each other since we were six.",
    "The novel tells the story of {singular} who opens a bakery in a harbour town.",
    "In the choir, {plural} sing next to singers from all over the city.",
    "{Singular} wrote to the newspaper to thank the bus driver for waiting.",
    "The museum shows photographs of {plural} at work in the 1950s.",
    "Last year {singular} was elected to the town council.",
    "I was talking with {singular} about the price of tomatoes at the market.",
    "The evening course helps {plural} to start a business of their own.",
    "{Plural} and their friends planted two hundred trees on the hill.",
    "The engineer in charge of the bridge is {singular} with thirty years of experience.",
    "My cousin married {singular} last spring, and the whole family came to the wedding.",
    "Health services should listen to {plural} when they plan new clinics.",
    "{Singular} sat beside me on the train and lent me a pen.",
    "The radio programme spoke with {plural} about the music of their childhood.",
    "For {plural}, the weekly market is a place to meet.",
    "The award for the best young scientist went to {singular} from the coast.",
    "We rent our flat from {singular} who lives on the ground floor.",
    "The history of {plural} in this region goes back several centuries.",
    "The best coffee in the office is made by {singular} from the third floor.",
    "The law gives {plural} the same rights as everyone else.",
)

_PARAGRAPH_TEMPLATES = (
    "The town lies on a slow river, and most of its houses were built more than a hundred years ago. On Saturdays the "
    "square in front of the church fills with stalls that sell bread, cheese, flowers and tools. Visitors who come by "
    "train have to walk for ten minutes through a park of old chestnut trees. {sentence} In the afternoon the cafés "
    "along the water are full, and there is music when the weather allows it. The council has plans for a new bridge, "
    "which would bring the two halves of the town closer together. Until then a small ferry carries bicycles and dogs "
    "from one bank to the other.",
    "We moved here three years ago, when the children were still small and the garden was a field of weeds. It took "
    "two summers to build the shed and to plant the apple trees that now stand along the fence. The winters are long, "
    "but the kitchen is warm, and there is always somebody who has time for a game of cards. {sentence} When the snow "
    "melts in March we open all of the windows and carry the furniture outside. Most of what we eat in the autumn has "
    "grown behind the house, and what is left over we give away. I would not want to live in a big city again.",
    "The report describes how the region has changed during the last twenty years. Two factories were closed, and a "
    "college for nurses and technicians was opened in one of the empty halls. The number of people who work from home "
    "has doubled, so that the morning trains are less crowded than they used to be. {sentence} According to the "
    "authors, the cost of housing is what most families worry about. They propose to use the land near the old "
    "harbour for flats, shops and a school. A decision is expected before the end of the year, after a public meeting "
    "at which everyone may speak.",
)
"""Paragraphs of plain prose, about 110 words long, with a place for the sentence."""

_SENTENCES_PER_DIALECT_PARAGRAPH = 12
"""Number of sentences in a paragraph of the axis `dialect`. Such a paragraph has 72 to 105 words."""

_STANDARD_SENTENCES = (
    "He is always working late at the shop.",
    "She does not have any money until Friday.",
    "They are about to go to the market.",
    "I have already finished my homework.",
    "My brother is very tired today.",
    "We have known her for a long time.",
    "Nobody told me anything about it.",
    "There is a new bakery on our street.",
    "Where are you going after school?",
    "My mother cooks rice and beans every Sunday.",
    "You all need to come over for dinner.",
    "He did not see the bus coming.",
    "I do not know where my keys are.",
    "The children are playing outside.",
    "She told him that she would call him later.",
    "That was a very good game last night.",
    "My grandmother used to live in the country.",
    "We are waiting for the rain to stop.",
    "He works at the hospital with my cousin.",
    "You should not leave the door open.",
    "I was just about to cook something.",
    "The car needs to be washed.",
    "Are you coming to the wedding?",
    "They have moved the meeting to an earlier day.",
    "It is cold this morning, so put your coat on.",
    "She has two sisters who live in the city.",
    "I would not go there at night.",
    "We had a lot of fun at the fair.",
    "Could you send me the papers by Monday?",
    "He has never been late for work.",
)

_DIALECT_SENTENCES: dict[str, tuple[str, ...]] = {
    # The sentences show habitual be, absent copula, completive done, remote been, negative concord (Green 2002).
    "African American English": (
        "He be working late at the shop.",
        "She ain't got no money till Friday.",
        "They finna go to the market.",
        "I done finished my homework.",
        "My brother real tired today.",
        "We been knowing her.",
        "Ain't nobody told me nothing about it.",
        "It's a new bakery on our street.",
        "Where you going after school?",
        "My mama be cooking rice and beans every Sunday.",
        "Y'all need to come through for dinner.",
        "He ain't see the bus coming.",
        "I don't know where my keys at.",
        "Them kids playing outside.",
        "She told him she was gon call him later.",
        "That game last night was real good.",
        "My grandmama used to stay in the country.",
        "We waiting on the rain to stop.",
        "He work at the hospital with my cousin.",
        "You ain't supposed to leave the door open.",
        "I was fixing to cook me something.",
        "That car need to get washed.",
        "You coming to the wedding?",
        "They done moved the meeting up.",
        "It's cold out this morning, so put you a coat on.",
        "She got two sisters that stay in the city.",
        "I wouldn't be going up in there at night.",
        "We had us a good time at the fair.",
        "Can you get me them papers by Monday?",
        "He ain't never been late for work.",
    ),
    "Scottish English": (
        "He's aye working late at the shop.",
        "She hasnae got any money till Friday.",
        "They're just away to the market the now.",
        "I've finished my homework already, so I have.",
        "My brother's fair wabbit the day.",
        "We've kent her a long time.",
        "Naebody telt me anything about it.",
        "There's a wee new bakery on our street.",
        "Where are youse going after the school?",
        "My maw cooks rice and beans every Sunday.",
        "Youse all need to come round for your dinner.",
        "He didnae see the bus coming.",
        "I dinnae ken where my keys are.",
        "The weans are playing outside.",
        "She telt him she'd phone him after.",
        "That was a braw game last night.",
        "My granny used to bide in the country.",
        "We're waiting on the rain going off.",
        "He works at the hospital with my cousin, ken.",
        "You shouldnae leave the door open.",
        "I was just about to make something, but.",
        "The motor needs washed.",
        "Are you coming to the wedding, aye?",
        "They've shifted the meeting to an earlier day, so they have.",
        "It's gey cold this morning, so get your coat on.",
        "She's got two sisters that stay in the city.",
        "I wouldnae go there at night.",
        "We'd a rare time at the fair.",
        "Could you send us the papers by Monday?",
        "He's never been late for his work, him.",
    ),
    # The sentences show progressive statives, focus `only`, `one` as an article and invariant tags (Sedlatschek 2009).
    "Indian English": (
        "He is always working late at the shop only.",
        "She is not having any money till Friday.",
        "They are going to market just now.",
        "I have finished my homework already, no?",
        "My brother is feeling too much tired today.",
        "We are knowing her since long time.",
        "Nobody was telling me anything about it.",
        "One new bakery is there on our street.",
        "Where you are going after school?",
        "My mother is cooking rice and beans every Sunday.",
        "You people must come over for dinner, na.",
        "He was not seeing the bus coming.",
        "I am not knowing where my keys are.",
        "The children are playing outside only.",
        "She told him that she will call him afterwards.",
        "That was one very good match yesterday night.",
        "My grandmother was staying in the village before.",
        "We are waiting for the rain to stop, what to do.",
        "He is working at the hospital with my cousin brother.",
        "You should not keep the door open like that.",
        "I was just going to make something.",
        "The car is needing one good wash.",
        "You are coming for the marriage, isn't it?",
        "They have preponed the meeting.",
        "It is too cold today morning, so wear your coat.",
        "She is having two sisters who are staying in the city.",
        "I will not go there in the night time.",
        "We enjoyed a lot at the fair.",
        "Kindly do the needful and send me the papers by Monday.",
        "He is never coming late for work.",
    ),
}
