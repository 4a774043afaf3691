package terminal_test

import (
	"encoding/json"
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

func FuzzNoTerminalActsOnText(f *testing.F) {
	f.Add("a\tb\nc\x1b[31md\u009be\x7f\u2028f\xffä€\r\x00")
	f.Add(`{"a":"` + "\u0080\u2029" + `"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if got := terminal.Line(text); strings.ContainsFunc(got, unicode.IsControl) {
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
		if strings.ContainsFunc(safe, unicode.IsControl) {
			t.Errorf("JSON(%q) = %q", unescaped, safe)
		}
	})
}
