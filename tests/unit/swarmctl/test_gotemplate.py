"""Templates: what Go prints, and what is refused; the docker CLI as an oracle where it is found."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.docker.values import OpenMap, Record
from shoal.errors import InvalidArgument
from swarmctl.gotemplate import parse, render
from swarmctl.gotemplate.lexer import Action, Literal, split

VALUE = Record(
    {
        "Name": "web",
        "Replicas": 3,
        "Ratio": 0.25,
        "On": True,
        "Off": False,
        "None": None,
        "Ports": [{"P": 80}, {"P": 81}],
        "Args": ["a", "b", "c"],
        "Labels": OpenMap({"app": "shop", "b.c": "d"}),
        "Empty": [],
        "Spec": Record({"Mode": {"Replicated": {"Replicas": 2}}}, absent=["UpdateConfig"]),
    },
    absent=["UpdateStatus"],
)

CASES = [
    ("", ""),
    ("plain { text }", "plain { text }"),
    ("{{.Name}}", "web"),
    ("<{{ .Name }}>", "<web>"),
    ("{{.Replicas}} {{.Ratio}} {{.On}} {{.None}}", "3 0.25 true <no value>"),
    ("{{.Args}}", "[a b c]"),
    ("{{.Labels}}", "map[app:shop b.c:d]"),
    ("{{.Labels.app}}", "shop"),
    ("{{.Labels.nosuch}}", "<no value>"),
    ('{{index .Labels "b.c"}}', "d"),
    ("{{index .Args 1}}", "b"),
    ("{{(index .Ports 1).P}}", "81"),
    ("{{.Spec.Mode.Replicated.Replicas}}", "2"),
    ("{{.UpdateStatus}}", "<no value>"),
    ("{{.UpdateStatus.State}}", "<no value>"),
    ("{{if .UpdateStatus}}yes{{else}}no{{end}}", "no"),
    ("{{if .On}}a{{end}}", "a"),
    ("{{if .Off}}a{{else if .On}}b{{else}}c{{end}}", "b"),
    ("{{if .Off}}a{{else if .Empty}}b{{else}}c{{end}}", "c"),
    ("{{with .Spec.Mode}}{{.Replicated.Replicas}}{{end}}", "2"),
    ("{{with .Empty}}x{{else}}{{.Name}}{{end}}", "web"),
    ("{{with $x := .Name}}{{$x}}{{end}}", "web"),
    ("{{range .Args}}{{.}},{{end}}", "a,b,c,"),
    ("{{range $i, $a := .Args}}{{$i}}{{$a}} {{end}}", "0a 1b 2c "),
    ("{{range $a := .Args}}{{$a}}{{$.Name}} {{end}}", "aweb bweb cweb "),
    ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "app=shop b.c=d "),
    ("{{range .Empty}}x{{else}}none{{end}}", "none"),
    ("{{range .UpdateStatus}}x{{end}}", ""),
    ("{{range .Args}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a"),
    ("{{range .Args}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}", "ac"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{$n := .Name}}{{$n}}", "web"),
    ("{{$n := 1}}{{if .On}}{{$n = 2}}{{end}}{{$n}}", "2"),
    ("{{$n := 1}}{{if .On}}{{$n := 2}}{{end}}{{$n}}", "1"),
    ("a {{- .Name -}} b", "awebb"),
    ("a {{/* note */}} b", "a  b"),
    ("a {{- /* note */ -}} b", "ab"),
    ("{{.Name | upper}}", "WEB"),
    ('{{.Name | printf "%s-%s" "a" | len}}', "5"),
    ('{{.Name | printf "%s-%d"}}', "web-%!d(MISSING)"),
    ('{{printf "%-5s|%5s|%03d" .Name .Name 7}}', "web  |  web|007"),
    ('{{printf "%q %v %t %x %.2f%%" .Name .Args .On 255 1.5}}', '"web" [a b c] true ff 1.50%'),
    ('{{print "a" 1 2 "b"}}', "a1 2b"),
    ('{{println "a" 1}}', "a 1\n"),
    ("{{json .Args}}", '["a","b","c"]'),
    ("{{json .Spec}}", '{"Mode":{"Replicated":{"Replicas":2}}}'),
    ("{{json .UpdateStatus}}", "null"),
    ('{{join .Args "-"}}', "a-b-c"),
    ('{{split "a:b" ":"}}', "[a b]"),
    ('{{title "two words"}}', "Two Words"),
    ('{{pad .Name 1 2}}|', " web  |"),
    ("{{truncate .Name 2}}", "we"),
    ("{{slice .Args 1}} {{slice .Name 0 2}}", "[b c] we"),
    ("{{len .Args}} {{len .Labels}} {{len .Name}}", "3 2 3"),
    ("{{eq .Name \"web\"}} {{eq 1 2 1}} {{ne 1 2}}", "true true true"),
    ("{{lt 1 2}} {{le 2 2}} {{gt 1.5 1}} {{ge \"b\" \"a\"}}", "true true true true"),
    ("{{and .On .Name}} {{or .Off .Name}} {{not .Off}}", "web web true"),
    ("{{or .Off .Empty}}", "[]"),
    ("{{and .Off (index .Args 99)}}", "false"),
    ('{{"a\\tb\\u00e9\\x41"}}{{`raw\\t`}}', "a\tbéAraw\\t"),
    ("{{'a'}} {{0x10}} {{010}} {{1_000}} {{-1}} {{1e3}}", "97 16 8 1000 -1 1000"),
    ("{{true}} {{(1)}}", "true 1"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), CASES)
def test_what_is_printed(template, expected):
    assert render(parse(template), VALUE) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{", "{{}}", "{{.Name", "{{.Name}", "{{if .On}}", "{{end}}", "{{else}}",
        "{{if .On}}{{else}}{{else}}{{end}}", "{{range}}{{end}}", "{{.Name .Name}}{{",
        "{{nosuch .Name}}", "{{.Name | }}", "{{| .Name}}", "{{(.Name}}", "{{.Name)}}", "{{$x}}",
        "{{$x = 1}}", "{{.Nosuch}}", "{{.Spec.Nosuch}}", "{{.Name.Nosuch}}", "{{.Name 1}}",
        "{{1 | 2}}", "{{index .Args 9}}", "{{index .Args \"a\"}}", "{{len 3}}", "{{eq 1 \"a\"}}",
        "{{lt .On .Off}}", "{{upper 3}}", "{{upper}}", "{{printf \"%d\" .Name}}",
        "{{printf \"x\" 1}}", "{{printf \"%y\" 1}}", "{{slice .Args 2 1}}",
        "{{range .Name}}{{end}}",
        "{{define \"x\"}}{{end}}", "{{template \"x\"}}", "{{\"\\z\"}}", "{{'ab'}}",
        "{{\"\\ud800\"}}",
        "{{if .On}}{{else nosuch}}{{end}}", "{{.Name%}}", "{{printf \"%9999s\" .Name}}",
        "{{" + "(" * 100 + "1" + ")" * 100 + "}}",
        "{{if 1}}" * 100 + "{{end}}" * 100,
    ],
)  # fmt: skip
def test_what_is_refused(template):
    with pytest.raises(InvalidArgument, match="--format"):
        render(parse(template), VALUE)


def test_a_wrong_field_is_named_with_those_that_exist():
    with pytest.raises(InvalidArgument, match=r"\.Spec\.Mdoe.*Mode, UpdateConfig"):
        render(parse("{{.Spec.Mdoe}}"), VALUE)


@given(st.text(alphabet="ab{}|.$ -\"`'()/*=:,0123 \nifendrangeelsewith", max_size=40))
def test_any_text_is_a_template_or_refused(text):
    with contextlib.suppress(InvalidArgument):
        render(parse(text), VALUE)


@given(st.text(max_size=60).filter(lambda text: "{{" not in text))
def test_text_without_actions_is_copied(text):
    assert render(parse(text), VALUE) == text


@given(st.text(max_size=30))
def test_quoted_strings_read_back(text):
    quoted = json.dumps(text)  # JSON's escapes, surrogate pairs aside, are Go's too
    if "\\ud" not in quoted:
        assert render(parse("{{" + quoted + "}}"), VALUE) == text


def test_pieces_of_a_template():
    first, second, third = split("a {{.X}} b")
    assert (first, third) == (Literal("a "), Literal(" b"))
    assert isinstance(second, Action)
    assert [token.text for token in second.tokens] == [".X"]


DOCKER = shutil.which("docker")
ORACLE = [
    "{{.Name}}",
    "{{json .Name}} {{json .Endpoints}}",
    "{{len .Endpoints}} {{len .Name}}",
    "{{range $k, $v := .Endpoints}}{{$k}}={{$v.Host}};{{end}}",
    "{{(index .Endpoints \"docker\").Host}}",
    "{{.Endpoints.docker.Host}} {{.Endpoints.docker.SkipTLSVerify}}",
    "{{with .Endpoints.docker}}{{.Host}}{{else}}none{{end}}",
    "{{if eq .Name \"shoal-test\"}}yes{{else}}no{{end}}",
    "{{if and .Name (not .TLSMaterial)}}a{{else if .Name}}b{{end}}",
    "{{printf \"%-12s|%5s|%q\" .Name \"x\" .Name}}",
    "{{upper .Name}} {{title .Name}} {{split .Name \"-\"}}",
    "{{join (split .Name \"-\") \"+\"}}",
    "{{pad .Name 2 3}}|{{truncate .Name 3}}|",
    "{{slice .Name 1 3}} {{index (split .Name \"-\") 1}}",
    "{{println .Name 1 true}}{{print 1 2 .Name 3}}",
    "{{- .Name -}}  x {{- /* c */ -}}  y",
    "{{$a := 1}}{{range $i, $e := split .Name \"-\"}}{{$a = $i}}{{end}}{{$a}}",
    "{{lt 1 2}} {{ge 2.5 1.5}} {{ne \"a\" \"b\"}} {{eq 3 1 2 3}}",
    "{{1_000}} {{0x1F}} {{'x'}} {{1.50}} {{-3}} {{1e3}} {{1e21}} {{0.00001}}",
    "{{`raw\\n`}}{{\"tab\\tend\"}}",
    "{{printf \"%05d|%+d|%x|%X|%o|%t|%6.2f|%e|%%\" 42 42 255 255 8 true 3.14159 1234.5}}",
    "{{.Nosuch}}",
    "{{nosuch}}",
    "{{if}}{{end}}",
    "{{.Name",
    "{{end}}",
    "{{upper 1}}",
    "{{index .Name 99}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def docker_context(tmp_path_factory):
    directory = tmp_path_factory.mktemp("docker")
    create = ["context", "create", "shoal-test", "--description", "A test", "--docker"]
    _docker(directory, *create, "host=tcp://192.0.2.1:2375")
    inspected = _docker(directory, "context", "inspect", "shoal-test").stdout
    return directory, json.loads(inspected)[0]


def _docker(directory, *arguments):
    return subprocess.run(
        ["docker", "--config", str(directory), *arguments],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


@pytest.mark.skipif(DOCKER is None, reason="needs the docker CLI as an oracle")
@pytest.mark.parametrize("template", ORACLE)
def test_docker_prints_the_same(docker_context, template):
    directory, value = docker_context
    theirs = _docker(directory, "context", "inspect", "--format", template, "shoal-test")
    try:
        ours = render(parse(template), value) + "\n"
    except InvalidArgument:
        assert theirs.returncode != 0, theirs.stdout
    else:
        assert (theirs.returncode, theirs.stdout) == (0, ours)
