package docker

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/plugins/sdk"
)

func TestLinesOfTheEngine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", sdk.MaxLogLine)
	for name, test := range map[string]struct {
		chunks []string
		want   []string
	}{
		"lines":         {[]string{"2026-01-02T03:04:05.000000006Z one\n2026-01-02T03:04:06Z two\n"}, []string{"one", "two"}},
		"empty line":    {[]string{"2026-01-02T03:04:05Z \n"}, []string{""}},
		"split":         {[]string{"2026-01-0", "2T03:04:05Z o", "ne\n2026-01-02T03:04:05Z t", "wo"}, []string{"one", "two"}},
		"no time":       {[]string{"one two\n"}, []string{"one two"}},
		"long":          {[]string{"2026-01-02T03:04:05Z " + long + "dropped", "dropped\n2026-01-02T03:04:05Z next\n"}, []string{long, "next"}},
		"carriage":      {[]string{"2026-01-02T03:04:05Z one\r\n"}, []string{"one\r"}},
		"nothing":       {nil, nil},
		"not a time, A": {[]string{"A B\n"}, []string{"A B"}},
	} {
		var got []string
		w := &lineWriter{stream: sdk.Stdout, emit: func(line sdk.LogLine) error {
			got = append(got, string(line.Data))
			return nil
		}}
		for _, chunk := range test.chunks {
			if _, err := w.Write([]byte(chunk)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// However the Engine cuts its stream, the lines are the same.
func FuzzLineWriter(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.000000006Z one\n2026-01-02T03:04:06Z two\nrest"), uint16(7))
	f.Add([]byte("\n\n \n"), uint16(1))
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		read := func(size int) (lines []sdk.LogLine) {
			w := &lineWriter{stream: sdk.Stderr, emit: func(line sdk.LogLine) error {
				line.Data = bytes.Clone(line.Data)
				lines = append(lines, line)
				return nil
			}}
			for chunk := range slices.Chunk(data, size) {
				if n, err := w.Write(chunk); err != nil || n != len(chunk) {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
			return lines
		}
		whole, cut := read(len(data)+1), read(int(size)+1)
		if !slices.EqualFunc(whole, cut, func(a, b sdk.LogLine) bool { return a.Time.Equal(b.Time) && bytes.Equal(a.Data, b.Data) }) {
			t.Errorf("cut into %d bytes: %q, whole: %q", size+1, cut, whole)
		}
		for _, line := range whole {
			if len(line.Data) > sdk.MaxLogLine || bytes.IndexByte(line.Data, '\n') >= 0 {
				t.Errorf("a line that cannot be: %q", line.Data)
			}
		}
	})
}

func TestProgressOfAPull(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "",
		`{"status":"Pulling"}` + "\n" + `{"status":"Done"}`:                                     "",
		`{"status":"Pulling"}` + "\n" + `{"errorDetail":{"message":"denied"},"error":"denied"}`: "denied",
		`{"error":"old form"}`: "old form",
		`{"status":`:           "read the progress",
	} {
		err := readProgress(strings.NewReader(text))
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestSecondsAreRoundedUp(t *testing.T) {
	t.Parallel()
	for span, want := range map[time.Duration]int{0: 0, -time.Second: 0, time.Millisecond: 1, time.Second: 1, 1500 * time.Millisecond: 2} {
		if got := seconds(span); got != want {
			t.Errorf("seconds(%s) = %d, want %d", span, got, want)
		}
	}
}
