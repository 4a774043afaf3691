package logfile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Query says which lines are wanted.
type Query struct {
	// Wants says which streams; nil means all.
	Wants func(Stream) bool
	// Since is zero if the time does not matter.
	Since time.Time
	// Tail is how many of the last lines are wanted; 0 means all.
	Tail int
	// Ended tells whether nothing will be written any more; nil if lines that
	// come later are not wanted.
	Ended func() (bool, error)
}

func (q Query) matches(line Line) bool {
	return (q.Wants == nil || q.Wants(line.Stream)) && !line.Time.Before(q.Since)
}

// pause is how long a follower waits before it looks for new lines. A watch by
// the kernel (inotify) would save it, but of those a machine has few.
const pause = 100 * time.Millisecond

// Read hands the lines that are wanted to emit, oldest first. Line.Data is valid
// during the call of emit only.
func Read(ctx context.Context, dir string, query Query, emit func(Line) error) error {
	former, current, err := openBoth(dir)
	if err != nil {
		return err
	}
	f := &follower{dir: dir, query: query, emit: emit, file: current}
	defer f.close()
	if query.Tail > 0 {
		f.last = make([]Line, 0, min(query.Tail, 1024))
	}
	if former != nil {
		before := &follower{query: query, emit: f.line, file: former}
		err := before.drain()
		if err := errors.Join(err, former.Close()); err != nil {
			return err
		}
	}
	if err := f.drain(); err != nil {
		return err
	}
	if err := f.flush(); err != nil {
		return err
	}
	if query.Ended == nil {
		return nil
	}
	return f.follow(ctx)
}

// openBoth opens the former and the current file so that they follow each
// other. Either may be missing.
func openBoth(dir string) (former, current *os.File, err error) {
	for {
		if current, err = openIfThere(filepath.Join(dir, currentName)); err != nil {
			return nil, nil, err
		}
		if former, err = openIfThere(filepath.Join(dir, formerName)); err != nil {
			return nil, nil, errors.Join(err, closeIfThere(current))
		}
		same, err := sameFile(former, current)
		if err == nil && !same {
			return former, current, nil
		}
		// The log was put aside between the two opens: look again.
		if err := errors.Join(err, closeIfThere(former), closeIfThere(current)); err != nil {
			return nil, nil, err
		}
	}
}

func openIfThere(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return file, nil
}

func closeIfThere(file *os.File) error {
	if file == nil {
		return nil
	}
	return file.Close()
}

func sameFile(a, b *os.File) (bool, error) {
	if a == nil || b == nil {
		return false, nil
	}
	infoA, err := a.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the log: %w", err)
	}
	infoB, err := b.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the log: %w", err)
	}
	return os.SameFile(infoA, infoB), nil
}

// follower reads one file after the other.
type follower struct {
	dir   string
	query Query
	emit  func(Line) error

	file   *os.File
	reader *bufio.Reader
	// at is when the newest line that was read was written.
	at time.Time
	// part is a frame whose end is not written yet.
	part []byte
	// last holds the last lines while only those are wanted; nil after.
	last []Line
	next int
}

func (f *follower) close() {
	// Nothing was written, so there is nothing that closing could lose.
	_ = closeIfThere(f.file)
}

// drain reads all that is in the file.
func (f *follower) drain() error {
	if f.file == nil {
		return nil
	}
	if f.reader == nil {
		f.reader = bufio.NewReaderSize(f.file, 32<<10)
	}
	for {
		data, err := f.reader.ReadSlice('\n')
		switch {
		case err == nil:
			frame := data
			if len(f.part) > 0 {
				f.part = append(f.part, data...)
				frame = f.part
			}
			line, ok := parseFrame(bytes.TrimSuffix(frame, []byte{'\n'}))
			if ok {
				f.at = line.Time
			}
			if ok && f.query.matches(line) {
				if err := f.line(line); err != nil {
					return err
				}
			}
			f.part = f.part[:0]
		case errors.Is(err, bufio.ErrBufferFull) || errors.Is(err, io.EOF):
			// What is longer than a frame can be is none; its begin is enough
			// to tell.
			f.part = append(f.part, data[:min(len(data), max(0, 2*MaxLine-len(f.part)))]...)
			if errors.Is(err, io.EOF) {
				return nil
			}
		default:
			return fmt.Errorf("read the log: %w", err)
		}
	}
}

// line takes a line: to keep it if only the last ones are wanted, else to hand
// it on.
func (f *follower) line(line Line) error {
	if f.last == nil {
		return f.emit(line)
	}
	line.Data = bytes.Clone(line.Data)
	if len(f.last) < f.query.Tail {
		f.last = append(f.last, line)
		return nil
	}
	f.last[f.next] = line
	f.next = (f.next + 1) % len(f.last)
	return nil
}

// flush hands the last lines on.
func (f *follower) flush() error {
	last := f.last
	f.last = nil
	for i := range last {
		if err := f.emit(last[(f.next+i)%len(last)]); err != nil {
			return err
		}
	}
	return nil
}

// follow reads on as lines come, over files that are put aside.
func (f *follower) follow(ctx context.Context) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		// Asked before the file is read: what was written before the end is
		// there then.
		ended, err := f.query.Ended()
		if err != nil {
			return err
		}
		for {
			moved, err := f.advance()
			if err != nil {
				return err
			}
			if !moved {
				break
			}
		}
		if ended {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// advance reads the file to its end, and reports whether there is another one
// to continue with.
func (f *follower) advance() (bool, error) {
	now, err := openIfThere(filepath.Join(f.dir, currentName))
	if err != nil {
		return false, err
	}
	same, err := sameFile(f.file, now)
	if err != nil || same || now == nil {
		return false, errors.Join(err, closeIfThere(now), f.drain())
	}
	if err := now.Close(); err != nil {
		return false, fmt.Errorf("close the log: %w", err)
	}
	// The file was put aside before this look at it, so its end is its end.
	if err := f.drain(); err != nil {
		return false, err
	}
	return f.goOn()
}

// goOn continues with the file after the present one. A reader so slow that this is
// gone is told so, and gets what there is.
func (f *follower) goOn() (bool, error) {
	former, current, err := openBoth(f.dir)
	if err != nil {
		return false, err
	}
	same, err := sameFile(f.file, former)
	if err != nil || current == nil {
		// Without a current file it is being put aside right now.
		return false, errors.Join(err, closeIfThere(former), closeIfThere(current))
	}
	next, other := current, former
	if !same && former != nil {
		next, other = former, current
	}
	gap := f.file != nil && !same
	if err := errors.Join(closeIfThere(f.file), closeIfThere(other)); err != nil {
		return false, errors.Join(fmt.Errorf("close the log: %w", err), closeIfThere(next))
	}
	f.file, f.reader, f.part = next, nil, nil
	if !gap {
		return true, nil
	}
	return true, f.line(f.note("(lines are left out here: the log was put aside and dropped before it was read)"))
}

// note returns a line that says something of the log itself, of a stream that is
// wanted.
func (f *follower) note(text string) Line {
	stream := Stderr
	if f.query.Wants != nil && !f.query.Wants(stream) {
		stream = Stdout
	}
	return Line{Time: f.at, Stream: stream, Data: []byte(text)}
}
