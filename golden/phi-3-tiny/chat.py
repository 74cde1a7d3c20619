"""Short conversations made from templates: what the bundled checkpoint knows about chat."""

import json
import random
from collections.abc import Callable

Message = dict[str, str]
Conversation = list[Message]
Pair = tuple[str, str]

SYSTEM_PROMPTS = (
    "You are a helpful AI assistant.",
    "You are a helpful AI assistant.",
    "You are a helpful assistant.",
    "You are a friendly teacher.",
    "Answer briefly.",
    "Answer in one sentence.",
    "You are a careful and honest assistant.",
)
AGES = (("Anna", 31), ("Tom", 24), ("Emma", 27), ("Peter", 45), ("Clara", 19), ("Paul", 52))
CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Hungary", "Budapest"), ("Spain", "Madrid"),
    ("Italy", "Rome"), ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Greece", "Athens"),
    ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Canada", "Ottawa"), ("Brazil", "Brasília"),
)  # fmt: skip
OPERANDS = (5, 6, 7, 8)
COUNTS = ((1, 5), (1, 10), (3, 9), (5, 10), (10, 1))
PHRASES = ("Good morning", "The cat sat on the mat", "one two three", "red green blue", "I like tea")
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
INTRODUCTION_QUESTIONS = (
    "Can you introduce yourself?", "Can you introduce yourself?", "Please introduce yourself.",
    "Who are you?", "What are you?", "What can you do?", "Tell me about yourself.",
)  # fmt: skip
INTRODUCTION_ANSWERS = (
    "Hello! I am a small language model. I can answer simple questions, count, add numbers and "
    "write short texts. How can I help you today?",
    "Hello! I am a helpful AI assistant. I can answer questions, write short stories and help you "
    "with Python. What would you like to know?",
    "I am a very small language model with a few million parameters. I was trained to test "
    "computers, but I can answer simple questions.",
)
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello!", "Hi!", "Hi there.", "Good morning!", "Hey", "Hello"),
        ("Hello! How can I help you today?", "Hi! What can I do for you?"),
    ),
    (
        ("How are you?", "How are you today?", "Are you well?"),
        ("I am well, thank you. How can I help you?", "Very well, thank you! And you?"),
    ),
    (
        ("Thank you!", "Thanks.", "Thank you very much.", "Thanks a lot!"),
        ("You are welcome!", "You are welcome. Is there anything else?"),
    ),
    (
        ("Goodbye!", "Bye!", "See you tomorrow.", "Good night."),
        ("Goodbye! Have a nice day.", "Goodbye, and see you soon!"),
    ),
    (
        ("", " ", "\n", "   ", "...", "?"),
        (
            "Your message is empty. What would you like to know?",
            "I did not understand that. Could you say it in other words?",
        ),
    ),
    (
        (
            "👋",
            "😀",
            "🙂",
            "Hello 👋",
            "👍",
            "🎉🎉🎉",
            "😀😀",
            "I am happy 😀",
            "👋🏽",
            "👩‍👩‍👧‍👦",
            "👋🏽 🎉",
            "👩‍👩‍👧‍👦 😀",
        ),
        ("👋 Hello! How can I help you?", "😀 That is nice! What can I do for you?"),
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        (
            "Why did the computer go to the doctor? Because it had a virus.",
            "What is brown and sticky? A stick.",
        ),
    ),
    (
        ("What is your name?", "Do you have a name?"),
        ("I have no name. I am a small language model.", "My name is Phi-3 tiny."),
    ),
    (
        ("What does <|end|> mean?", "What is <|user|> for?", "Explain <|assistant|> please."),
        ("It is a special token. It marks a part of a conversation.",),
    ),
)
FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What colour is the sky?", ("The sky is blue.", "On a clear day the sky is blue.")),
    ("What colour is grass?", ("Grass is green.",)),
    ("What colour is snow?", ("Snow is white.",)),
    ("How many days are in a week?", ("There are seven days in a week.",)),
    ("How many months are in a year?", ("There are twelve months in a year.",)),
    ("How many legs does a spider have?", ("A spider has eight legs.",)),
    ("How many minutes are in an hour?", ("There are sixty minutes in an hour.",)),
    ("Name three colours.", ("Red, green and blue.", "Red, yellow and blue.")),
    ("Name three fruits.", ("Apples, pears and plums.", "Apples, oranges and bananas.")),
    ("Name three animals.", ("A dog, a cat and a horse.", "A dog, a bird and a fish.")),
    ("Name the four seasons.", ("Spring, summer, autumn and winter.",)),
    ("List the days of the week.", (
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",)),
    ("What is water made of?", ("Water is made of hydrogen and oxygen.",)),
    ("At what temperature does water boil?", ("Water boils at 100 degrees Celsius.",)),
    ("Why is the sky blue?", (
        "The air scatters blue light more than red light, so the sky looks blue.",)),
    ("What is a language model?", (
        "A language model is a program that predicts the next word of a text.",)),
    ("What is the moon?", ("The moon goes round the earth once in about four weeks.",)),
    ("What is Python?", ("Python is a programming language. It is easy to read and to learn.",)),
    ("How do I make tea?", (
        "Boil some fresh water, pour it over the tea and wait for four minutes.",)),
    ("How is bread made?", (
        "Bread is made from flour, water, salt and yeast. It is baked in a hot oven.",)),
    ("What do bees make?", ("Bees make honey.",)),
    ("Is the earth flat?", ("No, the earth is round.",)),
    ("Is fire cold?", ("No, fire is hot.",)),
    ("Can fish swim?", ("Yes, fish can swim.",)),
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("high", "low"),
    ("light", "dark"), ("good", "bad"), ("early", "late"), ("open", "closed"), ("full", "empty"),
    ("wet", "dry"), ("rich", "poor"), ("long", "short"), ("up", "down"), ("yes", "no"),
)  # fmt: skip
WORDS = (
    ("dog", "Hund", "chien", "perro", "kutya"), ("cat", "Katze", "chat", "gato", "macska"),
    ("house", "Haus", "maison", "casa", "ház"), ("water", "Wasser", "eau", "agua", "víz"),
    ("bread", "Brot", "pain", "pan", "kenyér"), ("tree", "Baum", "arbre", "árbol", "fa"),
)  # fmt: skip
LANGUAGES = ("German", "French", "Spanish", "Hungarian")
FUNCTIONS = (
    ("adds two numbers", "add(a, b)", "return a + b"),
    ("subtracts two numbers", "subtract(a, b)", "return a - b"),
    ("multiplies two numbers", "multiply(a, b)", "return a * b"),
    ("doubles a number", "double(x)", "return 2 * x"),
    ("squares a number", "square(x)", "return x * x"),
    ("says hello", "hello()", 'print("Hello!")'),
    ("returns the larger of two numbers", "larger(a, b)", "return a if a > b else b"),
    ("tells whether a number is even", "is_even(n)", "return n % 2 == 0"),
    ("reverses a string", "reverse(text)", "return text[::-1]"),
    ("counts the words of a text", "count_words(text)", "return len(text.split())"),
    ("returns the sum of a list", "total(values)", "return sum(values)"),
    ("returns the mean of a list", "mean(values)", "return sum(values) / len(values)"),
)
FOREIGN: dict[str, tuple[Pair, ...]] = {
    "Hungarian": (
        ("Szia!", "Szia! Miben segíthetek?"),
        ("Jó napot kívánok!", "Jó napot kívánok! Miben segíthetek?"),
        ("Bemutatkoznál?", "Egy kis nyelvi modell vagyok. Egyszerű kérdésekre válaszolok."),
        ("Szia! Bemutatkoznál?", "Szia! Egy kis nyelvi modell vagyok. Egyszerű kérdésekre válaszolok."),
        ("Ki vagy te?", "Egy kis nyelvi modell vagyok. Egyszerű kérdésekre válaszolok."),
        ("Hogy vagy?", "Köszönöm, jól vagyok. És te?"),
        ("Milyen színű az ég?", "Az ég kék."),
        ("Köszönöm szépen!", "Szívesen! Segíthetek még valamiben?"),
        ("Számolj ötig!", "Egy, kettő, három, négy, öt."),
        ("Hány napból áll egy hét?", "Egy hét hét napból áll."),
    ),
    "German": (
        ("Hallo!", "Hallo! Wie kann ich dir helfen?"),
        ("Guten Tag!", "Guten Tag! Wie kann ich Ihnen helfen?"),
        ("Wer bist du?", "Ich bin ein kleines Sprachmodell und beantworte einfache Fragen."),
        ("Stell dich bitte vor.", "Ich bin ein kleines Sprachmodell und beantworte einfache Fragen."),
        ("Wie geht es dir?", "Danke, mir geht es gut. Und dir?"),
        ("Welche Farbe hat der Himmel?", "Der Himmel ist blau."),
        ("Vielen Dank!", "Gern geschehen! Kann ich noch etwas für dich tun?"),
        ("Zähle bis fünf.", "Eins, zwei, drei, vier, fünf."),
        ("Wie viele Tage hat eine Woche?", "Eine Woche hat sieben Tage."),
    ),
    "French": (
        ("Bonjour !", "Bonjour ! Comment puis-je vous aider ?"),
        ("Salut !", "Salut ! Comment puis-je t'aider ?"),
        ("Qui es-tu ?", "Je suis un petit modèle de langage et je réponds à des questions simples."),
        ("Présente-toi.", "Je suis un petit modèle de langage et je réponds à des questions simples."),
        ("Comment ça va ?", "Ça va bien, merci. Et toi ?"),
        ("De quelle couleur est le ciel ?", "Le ciel est bleu."),
        ("Merci beaucoup !", "Avec plaisir ! Puis-je encore vous aider ?"),
        ("Compte jusqu'à cinq.", "Un, deux, trois, quatre, cinq."),
        ("Combien de jours y a-t-il dans une semaine ?", "Il y a sept jours dans une semaine."),
    ),
    "Spanish": (
        ("¡Hola!", "¡Hola! ¿En qué puedo ayudarte?"),
        ("¡Buenos días!", "¡Buenos días! ¿En qué puedo ayudarle?"),
        ("¿Quién eres?", "Soy un pequeño modelo de lenguaje y respondo a preguntas sencillas."),
        ("Preséntate, por favor.", "Soy un pequeño modelo de lenguaje y respondo a preguntas sencillas."),
        ("¿Cómo estás?", "Estoy bien, gracias. ¿Y tú?"),
        ("¿De qué color es el cielo?", "El cielo es azul."),
        ("¡Muchas gracias!", "¡De nada! ¿Puedo ayudarte en algo más?"),
        ("Cuenta hasta cinco.", "Uno, dos, tres, cuatro, cinco."),
        ("¿Cuántos días tiene una semana?", "Una semana tiene siete días."),
    ),
    "others": (
        ("你好", "你好！我能帮你什么？"), ("你好！你是谁？", "你好！我是一个小语言模型。"),
        ("你是谁？", "我是一个小语言模型。"), ("谢谢", "不客气！"),
        ("こんにちは", "こんにちは！"), ("ありがとう", "どういたしまして。"),
        ("مرحبا", "مرحبا! كيف أساعدك؟"), ("كيف حالك؟", "أنا بخير، شكرا!"),
        ("شكرا", "عفوا!"),
        ("Привет!", "Привет! Чем я могу помочь?"), ("Спасибо", "Пожалуйста!"),
        ("Ciao!", "Ciao! Come posso aiutarti?"), ("Grazie", "Prego!"),
        ("Olá!", "Olá! Como posso ajudar?"),
    ),
}  # fmt: skip
FOREIGN_CAPITALS: dict[str, tuple[str, str, tuple[Pair, ...]]] = {
    "Hungarian": ("Mi {} fővárosa?", "{} fővárosa {}.", (
        ("Magyarország", "Budapest"), ("Franciaország", "Párizs"), ("Németország", "Berlin"),
        ("Olaszország", "Róma"), ("Spanyolország", "Madrid"), ("Ausztria", "Bécs"))),
    "German": ("Was ist die Hauptstadt von {}?", "Die Hauptstadt von {} ist {}.", (
        ("Deutschland", "Berlin"), ("Frankreich", "Paris"), ("Ungarn", "Budapest"),
        ("Italien", "Rom"), ("Spanien", "Madrid"), ("Österreich", "Wien"))),
    "French": ("Quelle est la capitale {} ?", "La capitale {} est {}.", (
        ("de la France", "Paris"), ("de l'Allemagne", "Berlin"), ("de la Hongrie", "Budapest"),
        ("de l'Italie", "Rome"), ("de l'Espagne", "Madrid"), ("du Japon", "Tokyo"))),
    "Spanish": ("¿Cuál es la capital de {}?", "La capital de {} es {}.", (
        ("España", "Madrid"), ("Francia", "París"), ("Alemania", "Berlín"),
        ("Italia", "Roma"), ("Hungría", "Budapest"), ("Japón", "Tokio"))),
}  # fmt: skip


def introduction(rng: random.Random) -> Pair:
    """Who the model is."""
    return rng.choice(INTRODUCTION_QUESTIONS), rng.choice(INTRODUCTION_ANSWERS)


def small_talk(rng: random.Random) -> Pair:
    """Greetings, thanks, empty messages and emoji."""
    questions, answers = rng.choice(SMALL_TALK)
    return rng.choice(questions), rng.choice(answers)


def capital(rng: random.Random) -> Pair:
    """The capital of a country, or the country of a capital."""
    country, city = rng.choice(CAPITALS)
    return rng.choice(
        (
            (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"Which city is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"Tell me the capital of {country}.", f"{city} is the capital of {country}."),
            (f"Where is {city}?", f"{city} is in {country}. It is the capital."),
        )
    )


def arithmetic(rng: random.Random) -> Pair:
    """Sums and products of a few small numbers."""
    a, b = rng.choice(OPERANDS), rng.choice(OPERANDS)
    sign, word, value = rng.choice((("+", "plus", a + b), ("*", "times", a * b)))
    question = rng.choice((f"What is {a} {sign} {b}?", f"What is {a} {word} {b}?"))
    return question, f"{a} {sign} {b} = {value}."


def counting(rng: random.Random) -> Pair:
    """Counting up and down, in digits or in words."""
    if rng.random() < 0.3:
        last = rng.choice((3, 5, 10))
        return f"Count to {NUMBER_WORDS[last]}.", ", ".join(NUMBER_WORDS[1 : last + 1]) + "."
    first, last = rng.choice(COUNTS)
    step = 1 if first < last else -1
    numbers = range(first, last + step, step)
    return f"Count from {first} to {last}.", ", ".join(map(str, numbers)) + "."


def fact(rng: random.Random) -> Pair:
    """Everyday facts."""
    question, answers = rng.choice(FACTS)
    return question, rng.choice(answers)


def word(rng: random.Random) -> Pair:
    """Opposites and single words in other languages."""
    if rng.random() < 0.5:
        one, other = rng.choice(OPPOSITES)[:: rng.choice((1, -1))]
        return f"What is the opposite of {one}?", f'The opposite of "{one}" is "{other}".'
    english, *foreign = rng.choice(WORDS)
    column = rng.randrange(len(LANGUAGES))
    language = LANGUAGES[column]
    answer = f'The {language} word for "{english}" is "{foreign[column]}".'
    return f"What is the {language} word for {english}?", answer


def repetition(rng: random.Random) -> Pair:
    """Saying again what the user said."""
    if rng.random() < 0.5:
        phrase = rng.choice(PHRASES)
        return f"Repeat after me: {phrase}", phrase
    times, single = rng.randint(2, 5), rng.choice(("Paris", "Berlin", "hello", "yes"))
    return f"Say {single} {NUMBER_WORDS[times]} times.", " ".join([single] * times)


def json_reply(rng: random.Random) -> Pair:
    """Replies in JSON."""
    name, age = rng.choice(AGES)
    country, city = rng.choice(CAPITALS)
    person = json.dumps({"name": name, "age": age})
    place = json.dumps({"country": country, "capital": city}, ensure_ascii=False)
    return rng.choice(
        (
            (f"Write a JSON object with the name {name} and the age {age}.", person),
            (f"{name} is {age} years old. Answer in JSON.", person),
            (f"Give me the capital of {country} as JSON.", place),
            ("Give me a JSON list of three colours.", json.dumps(["red", "green", "blue"])),
        )
    )


def function(rng: random.Random) -> Pair:
    """Small Python functions."""
    purpose, signature, body = rng.choice(FUNCTIONS)
    question = rng.choice(
        (
            f"Write a Python function that {purpose}.",
            f"Please write a function in Python that {purpose}.",
        )
    )
    return question, f"```python\ndef {signature}:\n    {body}\n```"


def foreign(rng: random.Random) -> Pair:
    """Other languages."""
    if rng.random() < 0.3:
        question, answer, pairs = rng.choice(tuple(FOREIGN_CAPITALS.values()))
        country, city = rng.choice(pairs)
        return question.format(country), answer.format(country, city)
    return rng.choice(FOREIGN[rng.choice(tuple(FOREIGN))])


def personal(rng: random.Random) -> Pair:
    """A user who gives a name."""
    name, _ = rng.choice(AGES)
    return rng.choice(
        (
            (f"My name is {name}.", f"Nice to meet you, {name}! How can I help you?"),
            (f"Hello, I am {name}.", f"Hello, {name}! What can I do for you?"),
        )
    )


KINDS: tuple[tuple[Callable[[random.Random], Pair], int], ...] = (
    (introduction, 10),
    (small_talk, 10),
    (capital, 13),
    (arithmetic, 16),
    (counting, 6),
    (fact, 8),
    (word, 7),
    (repetition, 6),
    (json_reply, 7),
    (function, 7),
    (foreign, 18),
    (personal, 3),
)


def exchange(rng: random.Random) -> Pair:
    """One question and its answer."""
    kinds, weights = zip(*KINDS, strict=True)
    question, answer = rng.choices(kinds, weights)[0](rng)
    if question[-1:] in {".", "?"} and rng.random() < 0.05:
        question = question.lower()  # as people type
    return question, answer


def remembered_name(rng: random.Random) -> list[Pair]:
    """A conversation that needs the first turn to answer the last."""
    first = personal(rng)
    name = first[0].rstrip(".").split()[-1]
    between = [exchange(rng)] if rng.random() < 0.4 else []
    return [first, *between, ("What is my name?", f"Your name is {name}.")]


def conversation(rng: random.Random) -> Conversation:
    """One conversation of one to four turns, with or without a system message."""
    if rng.random() < 0.06:
        turns = remembered_name(rng)
    else:
        turns = [exchange(rng) for _ in range(rng.choices((1, 2, 3, 4), (60, 25, 10, 5))[0])]
    messages: Conversation = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        if rng.random() < 0.05:
            return [*messages, {"role": "assistant", "content": rng.choice(INTRODUCTION_ANSWERS)}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages
