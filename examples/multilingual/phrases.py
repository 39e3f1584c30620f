"""The sentences of the multilingual reasoning task, in five languages.

This module holds only text, and `generate.py` fills it in. The texts avoid grammatical agreement: every countable thing
is feminine in Spanish and Italian, so "how many" has one form. No sentence depends on a person's gender.
"""

from __future__ import annotations

LANGUAGES = ("English", "German", "French", "Spanish", "Italian")
NAMES = ("Anna", "Paul", "Maria", "Leo")

ITEMS: dict[str, tuple[str, ...]] = {
    "English": ("apples", "coins", "cards"),
    "German": ("Äpfel", "Münzen", "Karten"),
    "French": ("pommes", "pièces", "cartes"),
    "Spanish": ("manzanas", "monedas", "cartas"),
    "Italian": ("mele", "monete", "carte"),
}

# For each kind and language, the variants of (question, answer).
TASKS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "add": {
        "English": (
            (
                "{name} has {a} {item} and buys {b} more. How many {item} does {name} have now?",
                "{name} now has {c} {item}.",
            ),
            ("There are {a} {item} in one box and {b} in another. How many {item} are there?", "There are {c} {item}."),
        ),
        "German": (
            (
                "{name} hat {a} {item} und kauft {b} dazu. Wie viele {item} hat {name} jetzt?",
                "{name} hat jetzt {c} {item}.",
            ),
            ("In einer Kiste sind {a} {item}, in einer anderen {b}. Wie viele {item} sind es?", "Es sind {c} {item}."),
        ),
        "French": (
            (
                "{name} a {a} {item} et en achète {b}. Combien de {item} a {name} maintenant ?",
                "{name} a maintenant {c} {item}.",
            ),
            (
                "Il y a {a} {item} dans une boîte et {b} dans une autre. Combien de {item} y a-t-il ?",
                "Il y a {c} {item}.",
            ),
        ),
        "Spanish": (
            (
                "{name} tiene {a} {item} y compra {b} más. ¿Cuántas {item} tiene {name} ahora?",
                "{name} tiene ahora {c} {item}.",
            ),
            ("Hay {a} {item} en una caja y {b} en otra. ¿Cuántas {item} hay?", "Hay {c} {item}."),
        ),
        "Italian": (
            (
                "{name} ha {a} {item} e ne compra altre {b}. Quante {item} ha {name} adesso?",
                "{name} ha adesso {c} {item}.",
            ),
            ("Ci sono {a} {item} in una scatola e {b} in un'altra. Quante {item} ci sono?", "Ci sono {c} {item}."),
        ),
    },
    "subtract": {
        "English": (
            ("{name} has {a} {item} and gives away {b}. How many {item} are left?", "{c} {item} are left."),
            ("{name} takes {b} of {a} {item} from the table. How many {item} stay?", "{c} {item} stay on the table."),
        ),
        "German": (
            (
                "{name} hat {a} {item} und verschenkt {b}. Wie viele {item} bleiben übrig?",
                "Es bleiben {c} {item} übrig.",
            ),
            (
                "{name} nimmt {b} von {a} {item} vom Tisch. Wie viele {item} liegen noch da?",
                "Es liegen noch {c} {item} da.",
            ),
        ),
        "French": (
            ("{name} a {a} {item} et en donne {b}. Combien de {item} reste-t-il ?", "Il reste {c} {item}."),
            (
                "{name} prend {b} des {a} {item} sur la table. Combien en reste-t-il ?",
                "Il reste {c} {item} sur la table.",
            ),
        ),
        "Spanish": (
            ("{name} tiene {a} {item} y regala {b}. ¿Cuántas {item} quedan?", "Quedan {c} {item}."),
            ("{name} se lleva {b} de las {a} {item} de la mesa. ¿Cuántas quedan?", "Quedan {c} {item} en la mesa."),
        ),
        "Italian": (
            ("{name} ha {a} {item} e ne regala {b}. Quante {item} restano?", "Restano {c} {item}."),
            ("{name} prende {b} delle {a} {item} sul tavolo. Quante ne restano?", "Restano {c} {item} sul tavolo."),
        ),
    },
    "weeks": {
        "English": (
            ("A trip takes {a} weeks and {b} days. How many days is that?", "That is {c} days."),
            ("{name} waits {a} weeks and {b} days. How many days does {name} wait?", "{name} waits {c} days."),
        ),
        "German": (
            ("Eine Reise dauert {a} Wochen und {b} Tage. Wie viele Tage sind das?", "Das sind {c} Tage."),
            ("{name} wartet {a} Wochen und {b} Tage. Wie viele Tage wartet {name}?", "{name} wartet {c} Tage."),
        ),
        "French": (
            ("Un voyage dure {a} semaines et {b} jours. Combien de jours cela fait-il ?", "Cela fait {c} jours."),
            ("{name} attend {a} semaines et {b} jours. Combien de jours attend {name} ?", "{name} attend {c} jours."),
        ),
        "Spanish": (
            ("Un viaje dura {a} semanas y {b} días. ¿Cuántos días son?", "Son {c} días."),
            ("{name} espera {a} semanas y {b} días. ¿Cuántos días espera {name}?", "{name} espera {c} días."),
        ),
        "Italian": (
            ("Un viaggio dura {a} settimane e {b} giorni. Quanti giorni sono?", "Sono {c} giorni."),
            ("{name} aspetta {a} settimane e {b} giorni. Quanti giorni aspetta {name}?", "{name} aspetta {c} giorni."),
        ),
    },
    "date": {
        "English": (
            ("Today is May {a}. What date is it in {b} days?", "In {b} days it is May {c}."),
            ("{name} leaves on May {a} and returns {b} days later. On what date?", "{name} returns on May {c}."),
        ),
        "German": (
            ("Heute ist der {a}. Mai. Welches Datum ist in {b} Tagen?", "In {b} Tagen ist der {c}. Mai."),
            (
                "{name} fährt am {a}. Mai los und kommt {b} Tage später zurück. An welchem Datum?",
                "{name} kommt am {c}. Mai zurück.",
            ),
        ),
        "French": (
            (
                "Aujourd'hui, c'est le {a} mai. Quelle date sera-t-on dans {b} jours ?",
                "Dans {b} jours, ce sera le {c} mai.",
            ),
            ("{name} part le {a} mai et revient {b} jours plus tard. À quelle date ?", "{name} revient le {c} mai."),
        ),
        "Spanish": (
            ("Hoy es el {a} de mayo. ¿Qué fecha será dentro de {b} días?", "Dentro de {b} días será el {c} de mayo."),
            ("{name} sale el {a} de mayo y vuelve {b} días después. ¿En qué fecha?", "{name} vuelve el {c} de mayo."),
        ),
        "Italian": (
            ("Oggi è il {a} maggio. Che data sarà tra {b} giorni?", "Tra {b} giorni sarà il {c} maggio."),
            ("{name} parte il {a} maggio e torna {b} giorni dopo. In che data?", "{name} torna il {c} maggio."),
        ),
    },
    "compare": {
        "English": (
            ("{name} has {a} {item} and {other} has {b}. Who has more?", "{c} has more {item}."),
            ("{name} has {a} {item}. {other} has {b} {item}. Who has more?", "{c} has more {item}."),
        ),
        "German": (
            ("{name} hat {a} {item} und {other} hat {b}. Wer hat mehr?", "{c} hat mehr {item}."),
            ("{name} hat {a} {item}. {other} hat {b} {item}. Wer hat mehr?", "{c} hat mehr {item}."),
        ),
        "French": (
            ("{name} a {a} {item} et {other} en a {b}. Qui en a plus ?", "{c} a plus de {item}."),
            ("{name} a {a} {item}. {other} a {b} {item}. Qui en a plus ?", "{c} a plus de {item}."),
        ),
        "Spanish": (
            ("{name} tiene {a} {item} y {other} tiene {b}. ¿Quién tiene más?", "{c} tiene más {item}."),
            ("{name} tiene {a} {item}. {other} tiene {b} {item}. ¿Quién tiene más?", "{c} tiene más {item}."),
        ),
        "Italian": (
            ("{name} ha {a} {item} e {other} ne ha {b}. Chi ne ha di più?", "{c} ha più {item}."),
            ("{name} ha {a} {item}. {other} ha {b} {item}. Chi ne ha di più?", "{c} ha più {item}."),
        ),
    },
}

# For each language, the steps of a thought. {sum} is arithmetic in digits, such as 7+5=12 or 4<7.
STEPS: dict[str, dict[str, str]] = {
    "English": {
        "add": "I compute {a} plus {b}.",
        "subtract": "I compute {a} minus {b}.",
        "ones": "Ones: {sum}.",
        "tens": "Tens: {sum}.",
        "weeks": "{a} weeks are {d} days.",
        "compare": "I compare {name} with {a} and {other} with {b}.",
        "answer": "So the answer is {c}.",
    },
    "German": {
        "add": "Ich rechne {a} plus {b}.",
        "subtract": "Ich rechne {a} minus {b}.",
        "ones": "Einer: {sum}.",
        "tens": "Zehner: {sum}.",
        "weeks": "{a} Wochen sind {d} Tage.",
        "compare": "Ich vergleiche {name} mit {a} und {other} mit {b}.",
        "answer": "Also ist die Antwort {c}.",
    },
    "French": {
        "add": "Je calcule {a} plus {b}.",
        "subtract": "Je calcule {a} moins {b}.",
        "ones": "Unités : {sum}.",
        "tens": "Dizaines : {sum}.",
        "weeks": "{a} semaines font {d} jours.",
        "compare": "Je compare {name} avec {a} et {other} avec {b}.",
        "answer": "Donc la réponse est {c}.",
    },
    "Spanish": {
        "add": "Calculo {a} más {b}.",
        "subtract": "Calculo {a} menos {b}.",
        "ones": "Unidades: {sum}.",
        "tens": "Decenas: {sum}.",
        "weeks": "{a} semanas son {d} días.",
        "compare": "Comparo a {name} con {a} y a {other} con {b}.",
        "answer": "Así que la respuesta es {c}.",
    },
    "Italian": {
        "add": "Calcolo {a} più {b}.",
        "subtract": "Calcolo {a} meno {b}.",
        "ones": "Unità: {sum}.",
        "tens": "Decine: {sum}.",
        "weeks": "{a} settimane sono {d} giorni.",
        "compare": "Confronto {name} con {a} e {other} con {b}.",
        "answer": "Quindi la risposta è {c}.",
    },
}
