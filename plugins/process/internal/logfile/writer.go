package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The files of a log: the one that is written, and the one before it.
const (
	currentName = "log"
	formerName  = "log.1"
)

// Writer writes a task's log. Its methods may be called at once.
type Writer struct {
	dir string
	max int64

	mu   sync.Mutex
	file *os.File
	size int64
	// lost is true while lines cannot be written.
	lost bool
}

// Create opens the log in a directory, to write on at its end. A file that has
// max bytes is put aside, and the one that was aside is dropped: a log takes
// twice max.
func Create(dir string, max int64) (*Writer, error) {
	w := &Writer{dir: dir, max: max}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	file, err := os.OpenFile(filepath.Join(w.dir, currentName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open the log: %w", err), file.Close())
	}
	w.file, w.size = file, info.Size()
	return nil
}

// Write writes one line. A task must not come to a halt because a disk is full:
// what cannot be written is dropped, and once writing works again the log says
// so.
func (w *Writer) Write(line Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	frame := appendFrame(nil, line)
	if w.lost {
		note := Line{Time: line.Time, Stream: Stderr, Data: []byte("(lines were lost here: the log could not be written)")}
		frame = append(appendFrame(nil, note), frame...)
	}
	if w.size > 0 && w.size+int64(len(frame)) > w.max {
		w.rotate()
	}
	if w.file == nil {
		w.lost = true
		return
	}
	n, err := w.file.Write(frame)
	if err != nil && n > 0 {
		// Half a frame would spoil the next one.
		if err := w.file.Truncate(w.size); err != nil {
			w.size += int64(n)
		}
	} else {
		w.size += int64(n)
	}
	w.lost = err != nil
}

// rotate puts the file aside and opens a new one.
func (w *Writer) rotate() {
	if w.file != nil {
		// The lines are in the file whatever closing says.
		_ = w.file.Close()
		w.file = nil
	}
	current := filepath.Join(w.dir, currentName)
	if err := os.Rename(current, filepath.Join(w.dir, formerName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Without a place aside the log starts again, because it must not grow.
		_ = os.Truncate(current, 0)
	}
	if err := w.open(); err != nil {
		w.file = nil
	}
}

// Close closes the log.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	return w.file.Close()
}

// Copy writes what comes from a task's output, line by line, until it ends.
func (w *Writer) Copy(stream Stream, output io.Reader) {
	var line []byte
	chunk := make([]byte, 8<<10)
	dropping := false
	for {
		n, err := output.Read(chunk)
		for rest := chunk[:n]; len(rest) > 0; {
			part, after, ended := bytes.Cut(rest, []byte{'\n'})
			if !dropping {
				line = append(line, part[:min(len(part), MaxLine-len(line))]...)
				dropping = len(line) == MaxLine
			}
			if ended {
				w.Write(Line{Time: time.Now(), Stream: stream, Data: line})
				line, dropping = line[:0], false
			}
			rest = after
		}
		if err != nil {
			if len(line) > 0 {
				w.Write(Line{Time: time.Now(), Stream: stream, Data: line})
			}
			return
		}
	}
}
