package terminal_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/musterhq/muster/internal/terminal"
)

func TestControlCharactersAreRemoved(t *testing.T) {
	const evil = "a\tb\nc\x1b[31md\u009be\x7f\u2028f\xffä\r\x00"
	if got, want := terminal.Line(evil), "a b c[31mde f\ufffdä"; got != want {
		t.Errorf("Line(%q) = %q, want %q", evil, got, want)
	}
	if got, want := terminal.Text(evil), "a\tb\nc[31mde\nf\ufffdä"; got != want {
		t.Errorf("Text(%q) = %q, want %q", evil, got, want)
	}
}

// Characters that change the direction of text: with them a line can read other
// than it was written.
const directing = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

func TestCharactersThatChangeTheDirectionAreRemoved(t *testing.T) {
	for _, r := range directing {
		text := "a" + string(r) + "b"
		for name, got := range map[string]string{"Line": terminal.Line(text), "Text": terminal.Text(text)} {
			if got != "ab" {
				t.Errorf("%s(%q) = %q, want %q", name, text, got, "ab")
			}
		}
		if got, want := string(terminal.JSON([]byte(`"`+text+`"`))), fmt.Sprintf(`"a\u%04xb"`, r); got != want {
			t.Errorf("JSON(%q) = %s, want %s", text, got, want)
		}
	}
	// Letters that are written from right to left stay.
	if hebrew := "שלום \u200d"; terminal.Line(hebrew) != hebrew {
		t.Errorf("Line(%q) = %q", hebrew, terminal.Line(hebrew))
	}
}

// unsafe reports whether a character must not reach a terminal.
func unsafe(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(directing, r) }

func FuzzNoTerminalActsOnText(f *testing.F) {
	f.Add("a\tb\nc\x1b[31md\u009be\x7f\u2028f\xffä€\r\x00")
	f.Add(`{"a":"` + "\u0080\u2029" + `"}`)
	f.Add("a" + directing + "b")
	f.Fuzz(func(t *testing.T, text string) {
		if got := terminal.Line(text); strings.ContainsFunc(got, unsafe) {
			t.Errorf("Line(%q) = %q", text, got)
		}
		encoded, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		// What encoding/json escapes, protojson does not.
		unescaped := strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029").Replace(string(encoded))
		var before, after string
		if json.Unmarshal([]byte(unescaped), &before) != nil {
			return
		}
		safe := string(terminal.JSON([]byte(unescaped)))
		if err := json.Unmarshal([]byte(safe), &after); err != nil || before != after {
			t.Errorf("JSON(%q) = %q: %q, %v; want %q", unescaped, safe, after, err, before)
		}
		if strings.ContainsFunc(safe, unsafe) {
			t.Errorf("JSON(%q) = %q", unescaped, safe)
		}
	})
}
