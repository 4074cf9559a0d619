"""What people run behind such a proxy, as workloads. Lengths follow published captures and defaults of the clients.

Each function documents who does this, and where its figures come from. Nothing is downloaded.
"""

from __future__ import annotations

from random import Random

from simulation.requests import Prompt, Segment
from simulation.trace import Aside, Session, Turn
from simulation.workloads import ANSWER, QUESTION, Length, Texts, Workload, geometric, poisson

__all__ = ["batch", "coding", "documents", "groups", "open_webui", "short_questions", "tenants"]

_SHORT_PROMPT = Length(60, 0.6, 8, 400)
_SHORT_REPLY = Length(60, 0.7, 4, 300)
_GROUP_ANSWER = Length(120, 0.6, 16, 400)

_AGENT_CONTEXTS = (16_000, 9_000)  # tokens before the first message: Claude Code, Codex
_PROJECT = Length(3000, 0.7, 500, 15_000)
_TOOL_RESULT = Length(1300, 1.0, 50, 10_000)
_TOOL_CALL = Length(110, 0.8, 16, 1200)
_MOST_AGENT_CONTEXT = 60_000

_TASK_TEMPLATES = {"follow-ups": 290, "title": 280, "tags": 210}  # tokens before the chat history
_TASK_REPLY = {"follow-ups": Length(60, 0.3, 20, 150), "title": Length(14, 0.3, 6, 40), "tags": Length(20, 0.3, 8, 50)}
_TASK_MESSAGES = {"follow-ups": 6, "title": 2, "tags": 6}

_DOCUMENT = Length(4000, 0.6, 800, 14_000)
_TENANT_SYSTEM = Length(1200, 0.6, 200, 5000)
_BATCH_ITEM = Length(2500, 0.5, 400, 8000)
_SUMMARY = Length(130, 0.4, 30, 300)


def groups(
    conversations_a_second: float, count: int, first_share: float | None = None, pause_seconds: float = 1.0
) -> Workload:
    """Several groups of conversations; each group shares a system prompt of 2,000 tokens.

    Teams whose assistants have one long instruction each, and evaluations that play conversations from scripts, where
    the next question follows soon. Four turns, questions of a few dozen tokens: the figures of
    ``benchmarks/warm_prefixes``, which runs the same workload on real llama.cpp servers. 2,000 tokens is a medium
    length of published system prompts of assistants (https://github.com/asgeirtj/system_prompts_leaks).

    Args:
        conversations_a_second: conversations begun per second.
        count: number of groups.
        first_share: fraction of conversations in the first group; ``None``: all groups are equally likely.
        pause_seconds: mean time between an answer and the next question.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        systems = [texts.of(2000) for _ in range(count)]
        made = []
        for number, start in enumerate(poisson(random, conversations_a_second, seconds)):
            is_first = first_share is not None and random.random() < first_share
            system = systems[0] if is_first else random.choice(systems[1:] if first_share is not None else systems)
            script = []
            for turn in range(4):
                question = texts.of(_SHORT_PROMPT.draw(random))
                pause = min(10.0, random.expovariate(1 / pause_seconds)) if turn else 0.0
                script.append(texts.turn(pause, (question,) if turn else (system, question), _GROUP_ANSWER))
            made.append(Session(start, tuple(script), f"conversation {number}"))
        return made

    return sessions


def short_questions(a_second: float) -> Workload:
    """Single short questions that share nothing.

    Completions in editors, classifiers, health checks with a prompt: what arrives beside conversations in every log.
    The lengths are those of the short requests in ``benchmarks/warm_prefixes``.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        return [
            Session(start, (texts.turn(0.0, (texts.of(_SHORT_PROMPT.draw(random)),), _SHORT_REPLY),), f"short {number}")
            for number, start in enumerate(poisson(random, a_second, seconds))
        ]

    return sessions


def coding(agents: int, most_steps: int = 14) -> Workload:
    """Coding agents (Claude Code, Codex): prompts that grow to 20,000 to 60,000 tokens through tool results.

    Programmers who run their agent on their own engines. Captures of Claude Code's requests
    (https://hpfreilabs.com/blog/anatomy-of-claude-code-session) show system prompt and tools of 15,000 to 19,000 tokens
    in every request, a title request of 441 tokens beside the first one, and many steps; Codex starts with about
    half as much. Then come the project's own instructions and files. Mooncake's trace of agents
    (https://github.com/kvcache-ai/Mooncake) has answers of about 180 tokens. Half of the tool calls end within 1.5 s.
    Codex names its session (``prompt_cache_key``), Claude Code does not. Half of the sessions are resumed or far
    advanced, and begin with much more context.

    Args:
        agents: number of sessions; all begin in the first half of the trace.
        most_steps: most tool calls of a session, at least 4.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        tools = [texts.of(tokens) for tokens in _AGENT_CONTEXTS]
        title = texts.of(330)
        made = []
        for number in range(agents):
            kind = number % len(tools)
            project = texts.of(_PROJECT.draw(random) + random.choice((0, random.randint(5000, 25_000))))
            first = texts.turn(0.0, (tools[kind], project), _TOOL_CALL)
            beside = Aside((title, texts.of(110)), texts.of(11), None, is_streamed=True)
            script = [Turn(0.0, first.added, first.answer, first.max_tokens, (beside,))]
            tokens = tools[kind].tokens + project.tokens + first.answer.tokens
            for _ in range(random.randint(4, most_steps)):
                pause = min(10.0, random.lognormvariate(0.4, 0.9))
                turn = texts.turn(pause, (texts.of(_TOOL_RESULT.draw(random)),), _TOOL_CALL)
                tokens += turn.added[0].tokens + turn.answer.tokens
                if tokens > _MOST_AGENT_CONTEXT:
                    break
                script.append(turn)
            name = f"agent {number}"
            start = random.uniform(0.0, seconds / 2)
            made.append(Session(start, tuple(script), name, name if kind else None))
        return sorted(made, key=lambda session: session.start)

    return sessions


def open_webui(chats_a_second: float, messages: float = 2.5, think_seconds: float = 6.0) -> Workload:
    """Chats in Open WebUI, which sends requests of its own after each answer.

    The most common web client of llama.cpp. After the first answer, it asks one after another for follow-up questions,
    a title and tags; after later answers, for follow-up questions (``background_tasks_handler`` in
    ``utils/middleware.py``). These requests are not streamed, have no session key, and consist of a fixed template and
    the last two or six messages (``DEFAULT_..._PROMPT_TEMPLATE`` in ``config.py``), so they share nothing with the chat
    itself. Chats have 2.5 questions on average (WildChat, https://arxiv.org/abs/2405.01470), of ShareGPT's lengths.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        system = texts.of(150)
        templates = {task: texts.of(tokens) for task, tokens in _TASK_TEMPLATES.items()}
        made = []
        for number, start in enumerate(poisson(random, chats_a_second, seconds)):
            script: list[Turn] = []
            history: Prompt = ()
            for message in range(1 + min(4, geometric(random, messages - 1))):
                question = texts.of(QUESTION.draw(random))
                pause = min(15.0, random.expovariate(1 / think_seconds)) if message else 0.0
                turn = texts.turn(pause, (question,) if message else (system, question), ANSWER)
                history += (question, turn.answer)
                tasks = ("follow-ups",) if message else tuple(templates)
                after = tuple(_task(texts, templates[task], task, history) for task in tasks)
                script.append(Turn(turn.pause, turn.added, turn.answer, None, (), after))
            made.append(Session(start, tuple(script), f"chat {number}"))
        return made

    return sessions


def _task(texts: Texts, template: Segment, task: str, history: Prompt) -> Aside:
    prompt = (template, *history[-_TASK_MESSAGES[task] :])
    return Aside(prompt, texts.of(_TASK_REPLY[task].draw(texts.random)), 1000 if task == "title" else None)


def documents(questions_a_second: float, count: int) -> Workload:
    """Questions about documents that several people ask about: retrieval (RAG), or a file in a shared project.

    A template of 300 tokens, a document of some 4,000 tokens, and the question; a third ask once more. The popularity
    of documents follows Zipf's law. 4,000 tokens is the context that five to ten retrieved chunks of 400 to 800 tokens
    fill, the defaults of LangChain and LlamaIndex; llm-d's benchmark (https://llm-d.ai/docs/guides/optimized-baseline)
    shares prefixes of 6,000 tokens.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        template = texts.of(300)
        shared = [texts.of(_DOCUMENT.draw(random)) for _ in range(count)]
        weights = [1 / rank for rank in range(1, count + 1)]
        made = []
        for number, start in enumerate(poisson(random, questions_a_second, seconds)):
            document = random.choices(shared, weights)[0]
            script = [texts.turn(0.0, (template, document, texts.of(_SHORT_PROMPT.draw(random))), ANSWER)]
            if random.random() < 1 / 3:
                pause = random.uniform(2.0, 10.0)
                script.append(texts.turn(pause, (texts.of(_SHORT_PROMPT.draw(random)),), ANSWER))
            made.append(texts.session(start, script, f"reader {number}"))
        return made

    return sessions


def tenants(conversations_a_second: float, count: int) -> Workload:
    """Many tenants of one service; each has a system prompt of its own.

    A company that offers assistants to its customers. Some tenants are much busier than others (Zipf's law with an
    exponent of 0.8, as in BurstGPT's users, https://arxiv.org/abs/2401.17644). System prompts have 200 to 5,000 tokens;
    conversations have 2.5 questions on average (WildChat), and half of them name their session.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        systems = [texts.of(_TENANT_SYSTEM.draw(random)) for _ in range(count)]
        weights = [rank**-0.8 for rank in range(1, count + 1)]
        made = []
        for number, start in enumerate(poisson(random, conversations_a_second, seconds)):
            tenant = random.choices(range(count), weights)[0]
            script = []
            for turn in range(1 + min(4, geometric(random, 1.5))):
                question = texts.of(QUESTION.draw(random))
                pause = min(10.0, random.expovariate(1 / 4.0)) if turn else 0.0
                script.append(texts.turn(pause, (question,) if turn else (systems[tenant], question), ANSWER))
            has_header = random.random() < 0.5
            made.append(texts.session(start, script, f"tenant {tenant} {number}", has_header=has_header))
        return made

    return sessions


def batch(workers: int, items: int) -> Workload:
    """A long batch: ``workers`` connections, each of which sends ``items`` prompts one after another.

    Nightly summaries, labelling, evaluations with a client that keeps a fixed number of requests in flight (the usual
    ``asyncio.Semaphore``, or ``--num-concurrent`` of lm-evaluation-harness). An instruction of 600 tokens is shared,
    followed by a text of some 2,500 tokens; the answer is short, bounded and not streamed.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:  # noqa: ARG001 -- it takes as long as it takes
        texts = Texts(random)
        instruction = texts.of(600)

        def item() -> Aside:
            text = texts.of(_BATCH_ITEM.draw(random))
            return Aside((instruction, text), texts.of(_SUMMARY.draw(random)), 512)

        made = []
        for number in range(workers):
            first, *others = (item() for _ in range(items))
            turn = Turn(0.0, first.prompt, first.answer, first.max_tokens, (), tuple(others))
            made.append(Session(2.0 + 0.01 * number, (turn,), "batch", None, is_streamed=False))
        return made

    return sessions
