"""The documentation is true: every example runs, every setting, error and number is right.

Each Python example has a ``:name:`` and a test marked with ``@shows(name)``.
"""

import importlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields as fields_of
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final, TypeVar

import click
import pytest
from flask import Flask
from flask.testing import FlaskClient

import flask_atm
from flask_atm import (
    ATM,
    ATMError,
    ConfigurationError,
    EngineParameters,
    current_login,
    protocols,
    stores,
    testing,
)
from flask_atm import signals as atm_signals
from flask_atm.cli import atm as commands
from flask_atm.config import (
    KEYS,
    APIConfig,
    BackChannelConfig,
    Config,
    IDTokenConfig,
    ProviderConfig,
)
from flask_atm.config.keys import ApplicationKeys
from flask_atm.config.values import NOT_YET
from flask_atm.grants.vault import record_key
from flask_atm.testing import FakeAPI, FakeClock, FakeProvider, sign_in
from flask_atm.tokens import FrozenDict
from tests.docs_support import (
    PAGES,
    ROOT,
    Directive,
    blocks,
    directives,
    example,
    fields,
    load,
    rows,
    sections,
)
from tests.servers import OIDCServer

T = TypeVar("T", bound=Callable[..., None])

DOCS: Final = ROOT / "docs"
SHOWN: Final[list[str]] = []
HTML: Final = {"Accept": "text/html"}
KEY: Final = secrets.token_hex()
NOT_AVAILABLE: Final = re.compile(r"not\s+available\s+in\s+this\s+version", re.IGNORECASE)
FLASK_KEYS: Final = {"SECRET_KEY"}
APP: Final = """
from flask import Flask, jsonify, render_template, request
from flask_atm import *
app = Flask(__name__)
"""


def shows(*names: str) -> Callable[[T], T]:
    """Mark a test with the examples that it runs."""
    SHOWN.extend(names)
    return lambda test: test


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a reader, for examples and what they need."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "templates").mkdir()
    return tmp_path


def sign_in_at(provider: FakeProvider, client: FlaskClient, path: str = "/oidc/login") -> str:
    """Do what a user does; give the place where the browser ends up."""
    at_provider = client.get(path, headers=HTML).location
    assert at_provider is not None
    assert at_provider.startswith(provider.issuer)
    answer = client.get(provider.approve(at_provider, user="alice"), headers=HTML)
    assert answer.status_code == 302, answer.text
    return str(answer.location)


def settings_in(module: ModuleType) -> dict[str, Any]:
    """Give what ``app.config.from_object`` would take."""
    return {name: value for name, value in vars(module).items() if name.isupper()}


# -- all pages


def test_every_example_has_a_name_and_a_test() -> None:
    found = blocks("python")
    assert not [block.at for block in found if not block.name]
    assert sorted(block.name for block in found) == sorted(SHOWN)


def test_every_setting_that_is_named_is_documented() -> None:
    known = {key.name for key in KEYS} | FLASK_KEYS
    for page in [*PAGES, ROOT / "CHANGES.rst", ROOT / "SECURITY.md"]:
        text = page.read_text("utf-8")
        named = set(re.findall(r":confval:`(\w+)`", text))
        named |= set(re.findall(r"\b(?:FLASK_)?(ATM_[A-Z_]+[A-Z])\b", text))
        assert named <= known | {"ATM_"}, page


def test_included_files_are_there() -> None:
    for page in PAGES:
        for found in directives(page):
            if found.kind in {"literalinclude", "include"}:
                assert (page.parent / found.argument).is_file(), f"{page}: {found.argument}"


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.at)
def test_commands_exist(block: Any) -> None:
    lines = [line for line in block.text.splitlines() if line]
    assert all(line.startswith("$ ") for line in lines), block.at
    for line in lines:
        if line.startswith("$ flask atm "):
            parse_command(shlex.split(line)[3:])


def parse_command(words: list[str]) -> None:
    """Let click read a command of ``flask atm``, without running it."""
    command = commands.commands[words[0]]
    command.make_context(words[0], words[1:], parent=click.Context(commands)).close()


def test_the_table_of_commands_is_complete() -> None:
    text = (DOCS / "api.rst").read_text("utf-8")
    assert set(re.findall(r"``flask atm (\w+)", text)) == set(commands.commands)


# -- README


def test_readme_has_the_command_of_the_tests_and_of_the_demo() -> None:
    text = (ROOT / "README.rst").read_text("utf-8")
    found = re.findall(r"^ +(python3 -m venv .*)$", text, flags=re.MULTILINE)
    start = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert found == [
        f"{start}. && .venv/bin/python examples/demo",
        f"{start}tox && .venv/bin/tox",
    ]
    assert (ROOT / "examples/demo").exists()


def test_readme_names_pages_that_are_there() -> None:
    text = (ROOT / "README.rst").read_text("utf-8")
    for name in re.findall(r"``((?:docs/)?\w+\.(?:rst|md))``", text):
        assert (ROOT / name).is_file(), name
    assert {page for page in PAGES if page.parent == DOCS and page.stem != "index"} >= {
        ROOT / name for name in re.findall(r"``(docs/\w+\.rst)``", text)
    }


@shows("readme-app")
def test_readme_application(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_provider: FakeProvider,
    fake_api: FakeAPI,
) -> None:
    block = example("readme-app")
    template = re.search(r"# (\{% if .*)", block.text)
    assert template is not None
    (folder / "templates/index.html").write_text(template[1], "utf-8")
    settings = fake_provider.settings()
    for key in ("SECRET_KEY", "ATM_ISSUER", "ATM_CLIENT_ID", "ATM_CLIENT_SECRET"):
        monkeypatch.setenv(f"FLASK_{key}", settings[key])
    apis = {"invoices": {"base_url": fake_api.base_url}}
    monkeypatch.setenv("FLASK_ATM_APIS", json.dumps(apis))
    before = "from flask import Flask, render_template\nfrom flask_atm import ATM, requires_token"
    app = load(block, folder, before=before).create_app()
    browser = app.test_client()
    assert browser.get("/").text == ""
    assert sign_in_at(fake_provider, browser, "/invoices") == "/invoices"
    assert browser.get("/").text == "Hello Alice Adams"
    assert browser.get("/invoices").json["sub"] == "alice"
    assert {call.path for call in fake_api.calls} == {"/latest"}


# -- quick start


@pytest.fixture
def quickstart(folder: Path) -> ModuleType:
    shutil.copy(ROOT / "examples/quickstart.py", folder / "quickstart.py")
    sys.modules.pop("quickstart", None)
    return importlib.import_module("quickstart")


def test_quickstart_signs_in_and_calls_the_api(
    quickstart: ModuleType, fake_provider: FakeProvider, fake_api: FakeAPI
) -> None:
    apis = {"invoices": {"base_url": fake_api.base_url}}
    browser = quickstart.create_app(fake_provider.settings(ATM_APIS=apis)).test_client()
    assert "Hello stranger!" in browser.get("/").text
    sign_in_at(fake_provider, browser)
    assert "Hello Alice Adams!" in browser.get("/").text
    assert browser.get("/invoices").json["sub"] == "alice"
    answer = browser.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303
    assert "Hello stranger!" in browser.get("/").text


def environment(text: str) -> dict[str, str]:
    """Let a shell run an example, and give what it exported for Flask."""
    script = f"set -eu\n{text}\nenv -0"
    shell = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.partition("=") for line in shell.stdout.split("\0") if line)
    return {name: value for name, _, value in pairs if name.startswith("FLASK_")}


def test_quickstart_environment_is_complete(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(example("quickstart-environment").text).items():
        monkeypatch.setenv(name, value)
    app = quickstart.create_app()
    assert app.extensions["atm"] is quickstart.atm


@shows("quickstart-views")
def test_quickstart_views(folder: Path, fake_provider: FakeProvider) -> None:
    before = f"""{APP}
started = []
class make_export:
    delay = staticmethod(lambda grant_id: started.append(grant_id))
"""
    module = load(example("quickstart-views"), folder, before=before)
    module.app.config.update(fake_provider.settings(ATM_SCOPE="openid reports:read"))
    ATM(module.app)
    browser = module.app.test_client()
    assert browser.get("/profile").status_code == 401
    assert sign_in_at(fake_provider, browser, "/profile") == "/profile"
    assert browser.get("/profile").json["subject"] == "alice"
    assert 0 < browser.get("/report").json["expires in"] <= 300
    assert browser.post("/export").status_code == 202
    assert len(module.started) == 1


# -- configuration


def confvals() -> dict[str, Directive]:
    page = DOCS / "configuration.rst"
    found = [one for one in directives(page) if one.kind == "confval"]
    assert len({one.argument for one in found}) == len(found)
    return {one.argument: one for one in found}


CONFVALS: Final = confvals()
DECLARED: Final = {
    f"ATM_{one.name.upper()}": one
    for kind in (ApplicationKeys, ProviderConfig)
    for one in fields_of(kind)
    if one.metadata
}
#: Defaults that depend on other keys, as the page says them.
DERIVED: Final = {
    "ATM_SCOPE": "``openid profile email``",
    "ATM_CLIENT_AUTH": "by what is given",
    "ATM_STORE": "``sqlite``",
    "ATM_DEFAULT_PROVIDER": "the flat one, or the only one",
    "ATM_ENCRYPTION_KEYS": "from SECRET_KEY",
    "ATM_ID_TOKEN": "``{}``",
    "ATM_BACK_CHANNEL": "``{}``",
}


def test_every_key_has_its_block_and_no_other_has() -> None:
    assert set(CONFVALS) == {key.name for key in KEYS} | FLASK_KEYS


def test_the_four_keys_come_first() -> None:
    first = ["SECRET_KEY", "ATM_ISSUER", "ATM_CLIENT_ID", "ATM_CLIENT_SECRET"]
    assert list(CONFVALS)[:4] == first


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_block_says_where_the_key_may_stand(key: Any) -> None:
    where = {"A": "(A)", "P": "(P)", "PC": "(P, C)"}[key.where]
    assert CONFVALS[key.name].options["type"].endswith(f" {where}")


def as_default(value: object) -> str:
    if value in (None, (), ""):
        return "none"
    if isinstance(value, FrozenDict):
        return f"``{dict(value)}``"
    return f"``{value:g}``" if isinstance(value, float) and value < 1e5 else f"``{_plain(value)}``"


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) else value


@pytest.mark.parametrize("name", sorted(CONFVALS))
def test_block_says_the_default(name: str) -> None:
    declared = DECLARED.get(name)
    made: Callable[[], object] = declared.default_factory if declared else lambda: None  # type: ignore[assignment]
    assert CONFVALS[name].options["default"] == DERIVED.get(name, as_default(made()))


def test_derived_defaults_are_so() -> None:
    config = Config.load(BASE, debug=False, testing=False)
    provider = config.providers["oidc"]
    assert " ".join(provider.scope) == "openid profile email"
    assert provider.client_auth == "client_secret_basic"
    assert config.store == "sqlite"
    assert config.default_provider == "oidc"
    assert config.encryption_keys[0].reveal() == KEY


@pytest.mark.parametrize("name", sorted(CONFVALS))
def test_block_says_what_goes_wrong(name: str) -> None:
    text = CONFVALS[name].text
    assert re.search(r"^\*\*(If|Without)\b", text, flags=re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ATM_APIS", APIConfig),
        ("ATM_BACK_CHANNEL", BackChannelConfig),
        ("ATM_ID_TOKEN", IDTokenConfig),
    ],
)
def test_block_names_the_keys_inside(name: str, kind: type[Any]) -> None:
    terms = re.findall(r"^(``.*)$", CONFVALS[name].text, flags=re.MULTILINE)
    named = {word for term in terms for word in re.findall(r"``(\w+)``", term)}
    assert named == {one.name for one in fields_of(kind) if one.metadata}


BASE: Final = {
    "SECRET_KEY": KEY,
    "ATM_ISSUER": "https://login.example.com",
    "ATM_CLIENT_ID": "app",
    "ATM_CLIENT_SECRET": "what-the-provider-gave-you",
}


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """Give the settings that the example of a key makes, with others that are needed."""
    (found,) = re.findall(r"\.\. code-block:: bash\n\n((?: {3}.*\n)+)", CONFVALS[name].text)
    for secret in re.findall(r"/run/secrets/([\w.]+)", found):
        (folder / secret).write_text(KEY, "utf-8")
    text = dedent(found).replace("/run/secrets", str(folder)).replace("<64 hex digits>", KEY)
    ((variable, value),) = environment(text).items()
    flask = Flask("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        flask.config.from_prefixed_env()
    own = {variable.removeprefix("FLASK_"): flask.config[variable.removeprefix("FLASK_")]}
    return {**{key: other for key, other in BASE.items() if f"{key}_FILE" != name}, **own}


def is_not_yet(name: str) -> bool:
    low = name.removeprefix("ATM_").lower()
    return any(known == low and value in (None, True) for known, value in NOT_YET)


@pytest.mark.parametrize("name", sorted(CONFVALS))
def test_example_of_a_key_is_accepted(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, tmp_path)
    if is_not_yet(name):
        with pytest.raises(ConfigurationError) as caught:
            Config.load(settings, debug=False, testing=False)
        (problem,) = caught.value.problems
        assert problem.startswith(f"{name}: not available in this version")
    else:
        Config.load(settings, debug=False, testing=False)


def test_what_is_not_available_is_said_to_be_so() -> None:
    for low, value in NOT_YET:
        name = "ATM_APIS" if low == "token" else f"ATM_{low.upper()}"
        text = CONFVALS[name].text
        assert NOT_AVAILABLE.search(text), name
        if isinstance(value, str):
            words = [word.partition(":")[0] for word in re.findall(r"``\"?([^`\"]+)\"?``", text)]
            assert [word for word in words if fnmatchcase(word, value)], (name, value)


def test_nothing_else_is_said_to_be_missing() -> None:
    missing = {name for name, one in CONFVALS.items() if NOT_AVAILABLE.search(one.text)}
    known = {"ATM_APIS" if low == "token" else f"ATM_{low.upper()}" for low, _ in NOT_YET}
    assert missing == known


@shows("configuration-python")
def test_configuration_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    before = f"{APP}\nimport os\nread_secret_from_vault = lambda: 'secret'"
    module = load(example("configuration-python"), folder, before=before)
    config = Config.load(module.app.config, debug=False, testing=False)
    assert config.providers["oidc"].client_secret is module.read_secret_from_vault


# -- providers


@shows("providers-oidc-provider")
def test_oidc_provider(oidc: OIDCServer, folder: Path, fake_clock: FakeClock) -> None:
    settings = settings_in(load(example("providers-oidc-provider"), folder))
    resource = {settings["ATM_RESOURCE"]: {"scope": "read", "format": "jwt"}}
    oidc.settings(resources=resource)
    registered = oidc.add_client("http://localhost/oidc/callback")
    settings["ATM_APIS"]["invoices"]["base_url"] = oidc.api_url
    own = {"ATM_ISSUER": oidc.issuer, "ATM_CLIENT_ID": registered.client_id}
    own |= {"ATM_CLIENT_SECRET": registered.client_secret or ""}
    app = Flask(__name__)
    app.config.update({**settings, **own, "SECRET_KEY": KEY, "ATM_STORE": "memory"})
    atm = ATM(app, clock=fake_clock)
    app.add_url_rule("/invoices", view_func=lambda: str(atm.api("invoices").get("").status_code))
    browser = app.test_client()
    visit = oidc.visit(browser.get("/oidc/login").location or "")
    assert browser.get(visit.url).status_code == 302
    for _ in range(3):
        assert browser.get("/invoices").text == "200"
        oidc.advance(400)
        fake_clock.advance(400)


@shows("providers-fake")
def test_fake_provider(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = f"""{APP}
atm = ATM()
app.add_url_rule("/", view_func=lambda: current_login.subject)
"""
    load(example("providers-fake"), folder, before=before)
    assert capsys.readouterr().out == "alice\n"


@shows("providers-connected")
def test_connected_account(folder: Path, fake_provider: FakeProvider, fake_api: FakeAPI) -> None:
    fake_provider.register("my-flask-app", "what-the-provider-gave-you")
    instead = {
        "https://forge.example.com": fake_provider.issuer,
        "https://api.forge.example.com/": fake_api.base_url,
    }
    before = f"{APP}\natm = ATM()"
    module = load(example("providers-connected"), folder, before=before, instead=instead)
    app, atm = module.app, module.atm
    app.config.update(SECRET_KEY=KEY, ATM_STORE="memory")
    atm.init_app(app)
    app.add_url_rule("/disconnect", view_func=lambda: atm.revoke_grant(provider="forge") or "gone")
    browser = app.test_client()
    assert sign_in_at(fake_provider, browser, "/repositories") == "/repositories"
    assert browser.get("/repositories").json["path"] == "/user/repos"
    browser.post("/oidc/logout", headers={"Sec-Fetch-Site": "same-origin"})
    assert browser.get("/repositories").status_code == 200
    assert browser.get("/disconnect").text == "gone"
    assert browser.get("/repositories").status_code == 401


@shows("providers-client")
def test_client_credentials(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    fake_provider: FakeProvider,
    fake_api: FakeAPI,
) -> None:
    fake_provider.register("billing-job", "what-the-provider-gave-you")
    instead = {
        "https://login.example.com": fake_provider.issuer,
        "https://ledger.example.com/": fake_api.base_url,
    }
    load(example("providers-client"), folder, before=APP, instead=instead)
    assert "'client_id': 'billing-job'" in capsys.readouterr().out


RECIPES: Final = [b.name for b in blocks("python") if b.name.startswith("recipe-")]


@shows("recipe-keycloak", "recipe-entra", "recipe-auth0", "recipe-okta", "recipe-google")
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_accepted(name: str, folder: Path) -> None:
    settings = settings_in(load(example(name), folder))
    config = Config.load({**settings, "SECRET_KEY": KEY}, debug=False, testing=False)
    assert config.providers["oidc"].sign_in


def test_recipes_say_that_they_are_not_run() -> None:
    found = {
        title: text
        for title, text in sections(DOCS / "providers.rst").items()
        if ":name: recipe-" in text
    }
    assert len(found) == len(RECIPES)
    assert all("*Recipe: not run by our tests.*" in text for text in found.values())


# -- refreshing


def test_numbers_are_those_of_the_engine() -> None:
    tables = directives(DOCS / "refreshing.rst")
    (table,) = (one for one in tables if one.options.get("name") == "engine-parameters")
    said = {name.strip("`"): float(number) for name, number, _ in rows(table)}
    engine = EngineParameters()
    names = [one.name for one in fields_of(engine)]
    assert said == {name: getattr(engine, name) for name in [*names, "lease", "wait"]}


# -- errors


# isinstance() would ask the proxies among them who is signed in.
ERRORS: Final = [
    name
    for name in flask_atm.__all__
    if type(found := getattr(flask_atm, name)) is type and issubclass(found, ATMError)
]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_its_block(name: str) -> None:
    block = sections(DOCS / "errors.rst")[name]
    wanted = ["what happened", "what the user sees", "what to do", "what cures it"]
    found = fields(block)
    assert list(found) == wanted
    assert all(found.values())


def test_the_tree_of_errors_is_the_real_one() -> None:
    text = (DOCS / "errors.rst").read_text("utf-8")
    tree = text.partition("   ATMError\n")[2].partition("\nYou do not")[0]
    depths = [(len(m[1]) // 4, m[2]) for m in re.finditer(r"^   ([│├└─ ]+)(\w+)", tree, re.M)]
    assert {name for _, name in depths} == set(ERRORS) - {"ATMError"}
    path = ["ATMError"]
    for depth, name in depths:
        path[depth:] = [name]
        assert issubclass(getattr(flask_atm, name), getattr(flask_atm, path[depth - 1]))


@pytest.fixture
def plain_app(folder: Path) -> Flask:
    app = Flask("plain_app")
    app.config.update(BASE, ATM_STORE="memory")
    ATM(app)
    app.add_url_rule("/profile", view_func=flask_atm.requires_login(lambda: "in"))
    return app


def test_problem_document_is_what_is_sent(plain_app: Flask) -> None:
    answer = plain_app.test_client().get("/profile")
    assert answer.mimetype == "application/problem+json"
    assert answer.json == json.loads(example("errors-problem").text)


@shows("errors-handler")
def test_own_error_handlers(folder: Path, fake_provider: FakeProvider) -> None:
    (folder / "templates/please_sign_in.html").write_text("please", "utf-8")
    (folder / "templates/try_later.html").write_text("in {{ seconds }} s", "utf-8")
    before = f"""{APP}
atm = ATM()
app.config.update({fake_provider.settings()!r})
app.add_url_rule("/shop/cart", view_func=requires_login(lambda: "cart"))
app.add_url_rule("/other", "other", view_func=requires_login(lambda: "other"))
def fail():
    raise ServerUnavailable(retry_after=7)
app.add_url_rule("/fail", view_func=fail)
"""
    browser = load(example("errors-handler"), folder, before=before).app.test_client()
    shop = browser.get("/shop/cart", headers=HTML)
    assert (shop.status_code, shop.text) == (401, "please")
    assert browser.get("/other", headers=HTML).status_code == 302
    later = browser.get("/fail")
    assert (later.status_code, later.text) == (503, "in 7 s")


@shows("errors-job")
def test_job(folder: Path, fake_provider: FakeProvider, fake_api: FakeAPI) -> None:
    settings = fake_provider.settings(ATM_APIS={"invoices": {"base_url": fake_api.base_url}})
    before = f"""{APP}
app.config.update({settings!r})
atm = ATM(app)
invoices = atm.api("invoices")
"""
    module = load(example("errors-job"), folder, before=before)
    with module.app.test_client() as browser:
        sign_in_at(fake_provider, browser)
        browser.get("/")
        grant_id = current_login.grant_id
    assert module.export(grant_id)["sub"] == "alice"
    with module.app.test_client() as other:
        old = sign_in(other, expires_in=-1, refresh_token="unknown to the provider")
    fake_provider.fail(status=503)
    assert re.fullmatch(r"again in \d+ seconds", module.export(old))
    assert module.export("oidc.nobody") == "the user has to sign in again"


# -- production (more of it in test_docs_deployment.py)


@shows("deployment-external-url", "deployment-proxyfix", "deployment-health")
def test_an_application_behind_a_proxy(folder: Path, fake_provider: FakeProvider) -> None:
    before = f"{APP}\napp.config.update({fake_provider.settings()!r})\n"
    fixed = load(example("deployment-proxyfix"), folder, before=before).app
    said = load(example("deployment-external-url"), folder, before=before).app
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example.com"}
    for app in (fixed, said):
        ATM(app)
        location = app.test_client().get("/oidc/login", headers={**HTML, **forwarded}).location
        assert "redirect_uri=https%3A%2F%2Fapp.example.com%2Foidc%2Fcallback" in location
    forged = {"X-Forwarded-Host": "evil.example"}
    assert fixed.test_client().get("/oidc/login", headers={**HTML, **forged}).status_code == 400
    watched = load(example("deployment-health"), folder, before=f"{before}atm = ATM(app)\n").app
    browser = watched.test_client()
    assert browser.get("/ready").json["store"] == "ok"
    assert browser.get("/alive").text == "alive"


# -- security


@shows("security-keys")
def test_keys_are_changed(folder: Path) -> None:
    before = f"{APP}\nnew_key, old_key = {KEY!r}, {KEY[::-1]!r}"
    app = load(example("security-keys"), folder, before=before).app
    config = Config.load({**BASE, **app.config}, debug=False, testing=False)
    assert config.ring_secrets == (KEY.encode(), KEY[::-1].encode())


def test_limits_are_in_the_short_form_too() -> None:
    short = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "Limits that no client can remove" in short
    assert "Limits that no client can remove" in sections(DOCS / "security.rst")


# -- testing


def pass_in(folder: Path, number: str) -> None:
    """Run the tests in a folder: so many pass, and no other."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"^{number} passed", run.stdout, flags=re.MULTILINE), run.stdout


def files_of_a_test_suite() -> Iterator[tuple[str, str]]:
    for block in blocks("python"):
        if block.name.startswith("testing-"):
            stem = block.name.removeprefix("testing-").replace("-", "_")
            yield "myapp.py" if stem == "app" else f"test_{stem}.py", block.text


@shows("testing-app", "testing-sign-in", "testing-provider", "testing-failures", "testing-job")
def test_test_suite_of_a_reader_passes(tmp_path: Path) -> None:
    tests = 0
    for name, text in files_of_a_test_suite():
        (tmp_path / name).write_text(text, "utf-8")
        tests += text.count("\ndef test_")
    pass_in(tmp_path, str(tests))


@shows("contract-store")
def test_store_of_a_reader_passes_the_contract(tmp_path: Path) -> None:
    (tmp_path / "test_store.py").write_text(example("contract-store").text, "utf-8")
    pass_in(tmp_path, r"\d\d")


@shows("stores-own", "stores-own-test")
def test_plain_store_of_a_reader_passes_the_contract(tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(example("stores-own").text, "utf-8")
    (tmp_path / "test_store.py").write_text(example("stores-own-test").text, "utf-8")
    pass_in(tmp_path, r"\d\d")


@shows("stores-session", "stores-cache-settings")
@pytest.mark.parametrize("name", ["stores-session", "stores-cache-settings"])
def test_settings_of_a_plain_store_are_accepted(name: str, folder: Path) -> None:
    module = load(example(name), folder, before=APP)
    module.app.config.update(
        TESTING=True, SECRET_KEY=KEY, ATM_ISSUER="https://login.example.com", ATM_CLIENT_ID="app"
    )
    ATM(module.app)
    assert module.app.extensions["atm.state"].plain is not None


@shows("stores-cache-object")
def test_a_cache_of_the_application_is_accepted(folder: Path) -> None:
    module = load(example("stores-cache-object"), folder)
    app = Flask("cached", instance_path=str(folder))
    app.config.update(
        TESTING=True, SECRET_KEY=KEY, ATM_ISSUER="https://login.example.com", ATM_CLIENT_ID="app"
    )
    module.create_app(app)
    client = app.test_client()
    grant_id = sign_in(client)
    plain = app.extensions["atm.state"].plain
    assert plain.load(record_key(grant_id))


def test_ways_to_go_wrong_are_there(fake_provider: FakeProvider, fake_api: FakeAPI) -> None:
    tables = [one for one in directives(DOCS / "testing.rst") if one.kind == "list-table"]
    said = re.findall(r"``((?:fake_|FakeProvider).*?)``", tables[0].text)
    ways = [way for way in said if "…" not in way]
    assert len(ways) > 10
    settings = fake_provider.settings()
    client_id, back = settings["ATM_CLIENT_ID"], "http%3A%2F%2Flocalhost%2F"
    url = f"{fake_provider.issuer}/authorize?response_type=code&client_id={client_id}&state=s"
    url += f"&redirect_uri={back}&code_challenge={'c' * 43}&code_challenge_method=S256&scope=openid"
    app = Flask(__name__)
    app.config.update(settings)
    ATM(app)
    known = {"fake_provider": fake_provider, "fake_api": fake_api, "url": url}
    known["client"] = app.test_client()
    for way in ways:
        made = eval(way, {**known, "FakeProvider": FakeProvider})  # noqa: S307 - our own text
        if isinstance(made, FakeProvider):
            made.close()


# -- API


@pytest.mark.parametrize("module", [flask_atm, testing, stores])
def test_every_public_name_is_documented(module: ModuleType) -> None:
    text = (DOCS / "api.rst").read_text("utf-8")
    for name in module.__all__:
        assert re.search(rf":: {module.__name__}\.{name}$", text, flags=re.MULTILINE), name


def test_signals_and_protocols_are_documented() -> None:
    text = (DOCS / "api.rst").read_text("utf-8")
    assert all(f":: {name}\n" in text for name in atm_signals.__all__)
    assert f".. automodule:: {protocols.__name__}\n   :members:" in text


@shows("api-signals")
def test_signals(folder: Path, fake_provider: FakeProvider) -> None:
    module = load(example("api-signals"), folder, before=f"{APP}\nusers = {{}}")
    module.app.config.update(fake_provider.settings())
    ATM(module.app)
    sign_in_at(fake_provider, module.app.test_client())
    assert module.users == {"alice": "Alice Adams"}


@shows("logout-receiver")
def test_receiver_of_a_logout(folder: Path, fake_provider: FakeProvider) -> None:
    module = load(
        example("logout-receiver"), folder, before=f"{APP}\ncarts = {{'alice': 1, 'bob': 2}}"
    )
    module.app.config.update(fake_provider.settings())
    ATM(module.app)
    browser = module.app.test_client()
    sign_in_at(fake_provider, browser)
    assert fake_provider.backchannel_logout(browser, sub="alice").status_code == 200
    assert module.carts == {"bob": 2}


def test_routes_are_those_that_are_listed(plain_app: Flask) -> None:
    text = (DOCS / "api.rst").read_text("utf-8").partition("\nRoutes\n")[2]
    (table,) = re.findall(r"list-table::.*?(?=\n\S)", text, flags=re.DOTALL)[:1]
    said = dict(re.findall(r"\* - ``(atm\.\w+)``\n +- (.*)", table))
    real: dict[str, set[str]] = {}
    for rule in plain_app.url_map.iter_rules():
        if rule.endpoint.startswith("atm."):
            real.setdefault(rule.endpoint, set()).add(rule.rule.removeprefix("/oidc"))
    assert {name: set(re.findall(r"``(.*?)``", paths)) for name, paths in said.items()} == real
