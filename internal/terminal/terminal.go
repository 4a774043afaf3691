// Package terminal makes text that others wrote, such as a task's output or its
// error, safe to print: no terminal acts on what is left, and it reads in the
// order in which it was written.
package terminal

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns text as one line without control characters, those that change the
// direction of text included. Line ends and tabs become spaces; what is not UTF-8
// becomes U+FFFD.
func Line(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || separates(r):
			return ' '
		case acts(r):
			return -1
		}
		return r
	}, text)
}

// Text does the same for text of several lines, whose line ends and tabs stay.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case separates(r):
			return '\n'
		case acts(r):
			return -1
		}
		return r
	}, text)
}

// JSON escapes the control characters that encoders of JSON leave as they are: DEL,
// those of 8 bits, the separators of lines, and those that change the direction of
// text. The value stays the same.
func JSON(encoded []byte) []byte {
	// All but DEL begin with one of the other bytes.
	if !slices.ContainsFunc([]byte{0x7f, 0xc2, 0xd8, 0xe2}, func(b byte) bool { return bytes.IndexByte(encoded, b) >= 0 }) {
		return encoded
	}
	if !bytes.ContainsFunc(encoded, escaped) {
		return encoded
	}
	out := make([]byte, 0, len(encoded)+len(encoded)/8)
	for len(encoded) > 0 {
		r, size := utf8.DecodeRune(encoded)
		if escaped(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, encoded[:size]...)
		}
		encoded = encoded[size:]
	}
	return out
}

// acts reports whether a terminal may act on a character: controls of 7 and 8 bits,
// and those that change the direction of text.
func acts(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f || directs(r) }

// directs reports whether a character changes the direction in which the text
// around it is shown, so that a line reads other than it was written (Unicode's
// Bidi_Control).
func directs(r rune) bool { return unicode.Is(unicode.Bidi_Control, r) }

// separates reports whether some take a character for the end of a line.
func separates(r rune) bool { return r == '\u2028' || r == '\u2029' }

func escaped(r rune) bool { return r >= 0x7f && r <= 0x9f || separates(r) || directs(r) }
