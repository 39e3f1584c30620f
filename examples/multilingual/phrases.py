"""The sentences of the multilingual reasoning task, in five languages.

Only text lives here; `generate.py` fills it in. The grammar is kept out of the way on purpose: every countable thing is
feminine in Spanish and Italian (one form of "how many"), and no sentence depends on a person's gender.
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

WEEKDAYS: dict[str, tuple[str, ...]] = {
    "English": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "German": ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
    "French": ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"),
    "Spanish": ("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
    "Italian": ("lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato", "domenica"),
}

# kind -> language -> variants of (question, answer). `compare` asks for the larger, then for the smaller.
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
    "weekday": {
        "English": (
            ("Today is {a}. What day is it in {b} days?", "In {b} days it is {c}."),
            ("{name} leaves on {a} and returns {b} days later. On what day?", "{name} returns on {c}."),
        ),
        "German": (
            ("Heute ist {a}. Welcher Tag ist in {b} Tagen?", "In {b} Tagen ist {c}."),
            (
                "{name} fährt am {a} los und kommt {b} Tage später zurück. An welchem Tag?",
                "{name} kommt am {c} zurück.",
            ),
        ),
        "French": (
            ("Aujourd'hui, c'est {a}. Quel jour sera-t-on dans {b} jours ?", "Dans {b} jours, ce sera {c}."),
            ("{name} part un {a} et revient {b} jours plus tard. Quel jour ?", "{name} revient un {c}."),
        ),
        "Spanish": (
            ("Hoy es {a}. ¿Qué día será dentro de {b} días?", "Dentro de {b} días será {c}."),
            ("{name} sale un {a} y vuelve {b} días después. ¿Qué día?", "{name} vuelve un {c}."),
        ),
        "Italian": (
            ("Oggi è {a}. Che giorno sarà tra {b} giorni?", "Tra {b} giorni sarà {c}."),
            ("{name} parte di {a} e torna {b} giorni dopo. Che giorno?", "{name} torna di {c}."),
        ),
    },
    "compare": {
        "English": (
            ("{name} has {a} {item} and {other} has {b}. Who has more?", "{c} has more {item}."),
            ("{name} has {a} {item} and {other} has {b}. Who has fewer?", "{c} has fewer {item}."),
        ),
        "German": (
            ("{name} hat {a} {item} und {other} hat {b}. Wer hat mehr?", "{c} hat mehr {item}."),
            ("{name} hat {a} {item} und {other} hat {b}. Wer hat weniger?", "{c} hat weniger {item}."),
        ),
        "French": (
            ("{name} a {a} {item} et {other} en a {b}. Qui en a plus ?", "{c} a plus de {item}."),
            ("{name} a {a} {item} et {other} en a {b}. Qui en a moins ?", "{c} a moins de {item}."),
        ),
        "Spanish": (
            ("{name} tiene {a} {item} y {other} tiene {b}. ¿Quién tiene más?", "{c} tiene más {item}."),
            ("{name} tiene {a} {item} y {other} tiene {b}. ¿Quién tiene menos?", "{c} tiene menos {item}."),
        ),
        "Italian": (
            ("{name} ha {a} {item} e {other} ne ha {b}. Chi ne ha di più?", "{c} ha più {item}."),
            ("{name} ha {a} {item} e {other} ne ha {b}. Chi ne ha di meno?", "{c} ha meno {item}."),
        ),
    },
}

# The steps of a thought. {sum} is arithmetic that needs no language, such as 7+5=12 or 4<7.
STEPS: dict[str, dict[str, str]] = {
    "English": {
        "add": "I compute {a} plus {b}.",
        "subtract": "I compute {a} minus {b}.",
        "ones": "Ones: {sum}.",
        "tens": "Tens: {sum}.",
        "weeks": "{a} weeks are {d} days.",
        "count": "I count {b} days from {a}: {days}.",
        "compare": "I compare {name} with {a} and {other} with {b}.",
        "answer": "So the answer is {c}.",
    },
    "German": {
        "add": "Ich rechne {a} plus {b}.",
        "subtract": "Ich rechne {a} minus {b}.",
        "ones": "Einer: {sum}.",
        "tens": "Zehner: {sum}.",
        "weeks": "{a} Wochen sind {d} Tage.",
        "count": "Ich zähle {b} Tage ab {a}: {days}.",
        "compare": "Ich vergleiche {name} mit {a} und {other} mit {b}.",
        "answer": "Also ist die Antwort {c}.",
    },
    "French": {
        "add": "Je calcule {a} plus {b}.",
        "subtract": "Je calcule {a} moins {b}.",
        "ones": "Unités : {sum}.",
        "tens": "Dizaines : {sum}.",
        "weeks": "{a} semaines font {d} jours.",
        "count": "Je compte {b} jours après {a} : {days}.",
        "compare": "Je compare {name} avec {a} et {other} avec {b}.",
        "answer": "Donc la réponse est {c}.",
    },
    "Spanish": {
        "add": "Calculo {a} más {b}.",
        "subtract": "Calculo {a} menos {b}.",
        "ones": "Unidades: {sum}.",
        "tens": "Decenas: {sum}.",
        "weeks": "{a} semanas son {d} días.",
        "count": "Cuento {b} días desde el {a}: {days}.",
        "compare": "Comparo a {name} con {a} y a {other} con {b}.",
        "answer": "Así que la respuesta es {c}.",
    },
    "Italian": {
        "add": "Calcolo {a} più {b}.",
        "subtract": "Calcolo {a} meno {b}.",
        "ones": "Unità: {sum}.",
        "tens": "Decine: {sum}.",
        "weeks": "{a} settimane sono {d} giorni.",
        "count": "Conto {b} giorni da {a}: {days}.",
        "compare": "Confronto {name} con {a} e {other} con {b}.",
        "answer": "Quindi la risposta è {c}.",
    },
}
