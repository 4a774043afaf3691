// Package logfile keeps what a task writes: lines, each with its time and its
// stream, in a file of bounded size and the one before it.
//
// A line of the file is a frame:
//
//	2026-11-21T05:41:07.123456789Z stdout the line as the task wrote it
//
// so that people can read the file too. The task's supervisor writes it, an
// executor's process reads it, and neither needs the other.
package logfile

import (
	"bytes"
	"time"
)

// Stream is an output of a task.
type Stream uint8

// The outputs of a task.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// MaxLine is how many bytes of a line are kept; the rest of a longer line is
// dropped.
const MaxLine = 16 << 10

// Line is one line that a task wrote.
type Line struct {
	Time   time.Time
	Stream Stream
	// Data is the line without its end.
	Data []byte
}

// timeLayout has all nine digits, so that every frame's head is of one length.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

var (
	stdoutWord = []byte(" stdout ")
	stderrWord = []byte(" stderr ")
)

// appendFrame appends a line's frame, its end included.
func appendFrame(to []byte, line Line) []byte {
	to = line.Time.UTC().AppendFormat(to, timeLayout)
	if line.Stream == Stderr {
		to = append(to, stderrWord...)
	} else {
		to = append(to, stdoutWord...)
	}
	to = append(to, line.Data[:min(len(line.Data), MaxLine)]...)
	return append(to, '\n')
}

// parseFrame reads a frame without its end. It reports false for what is none:
// a part of one, left by a machine that went down. Data is a part of frame.
func parseFrame(frame []byte) (Line, bool) {
	const head = len(timeLayout) + len(" stdout ")
	if len(frame) < head || len(frame) > head+MaxLine {
		return Line{}, false
	}
	at, err := time.Parse(timeLayout, string(frame[:len(timeLayout)]))
	if err != nil {
		return Line{}, false
	}
	line := Line{Time: at, Stream: Stdout, Data: frame[head:]}
	switch word := frame[len(timeLayout):head]; {
	case bytes.Equal(word, stdoutWord):
	case bytes.Equal(word, stderrWord):
		line.Stream = Stderr
	default:
		return Line{}, false
	}
	return line, true
}
