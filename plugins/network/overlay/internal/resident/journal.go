//go:build linux

package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// The kinds of entries of a journal. Each is a byte before the message.
const (
	entryApply  = 'A'
	entryAttach = 'T'
	entryDetach = 'D'
)

// journal is the file from which a process that starts again learns what the one before
// it was told. It begins with a complete request; changes are appended. It need not
// outlive the machine, so nothing is synchronized to the disk.
type journal struct {
	path string
	file *os.File
	size int64
}

// replace starts the file again with some messages.
func (j *journal) replace(messages ...proto.Message) error {
	file, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(file)
	for _, m := range messages {
		err = errors.Join(err, writeEntry(out, m))
	}
	if err = errors.Join(err, out.Flush()); err == nil {
		err = os.Rename(file.Name(), j.path)
	}
	var size int64
	if err == nil {
		size, err = file.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	j.close()
	j.file, j.size = file, size
	return nil
}

// add appends a message. A part of it is not left behind.
func (j *journal) add(m proto.Message) error {
	if j.file == nil {
		return errors.New("the journal is not open")
	}
	out := bufio.NewWriter(j.file)
	err := errors.Join(writeEntry(out, m), out.Flush())
	if err == nil {
		j.size, err = j.file.Seek(0, io.SeekCurrent)
		return err
	}
	if undo := j.file.Truncate(j.size); undo != nil {
		return errors.Join(err, undo)
	}
	_, undo := j.file.Seek(j.size, io.SeekStart)
	return errors.Join(err, undo)
}

// drop removes the file: it no longer says what is true.
func (j *journal) drop() {
	j.close()
	_ = os.Remove(j.path)
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close()
		j.file = nil
	}
}

func writeEntry(out *bufio.Writer, m proto.Message) error {
	var kind byte
	switch m.(type) {
	case *networkv1.ApplyRequest:
		kind = entryApply
	case *networkv1.AttachRequest:
		kind = entryAttach
	case *networkv1.DetachRequest:
		kind = entryDetach
	default:
		return fmt.Errorf("a journal has no entries of type %T", m)
	}
	if err := out.WriteByte(kind); err != nil {
		return err
	}
	_, err := protodelim.MarshalTo(out, m)
	return err
}

// open reads the file and calls a function with each message. What follows the first
// message that is damaged, incomplete or refused is cut off; the error says why.
func (j *journal) open(each func(proto.Message) error) error {
	file, err := os.OpenFile(j.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	size, cause := readJournal(file, each)
	_, err = file.Seek(size, io.SeekStart)
	if err = errors.Join(err, file.Truncate(size)); err != nil {
		return errors.Join(cause, err, file.Close())
	}
	j.file, j.size = file, size
	return cause
}

// readJournal calls a function with each message, and returns the size of those that it
// took.
func readJournal(file io.Reader, each func(proto.Message) error) (size int64, err error) {
	counted := &counter{Reader: file}
	in := bufio.NewReader(counted)
	for {
		kind, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		var m proto.Message
		switch kind {
		case entryApply:
			m = &networkv1.ApplyRequest{}
		case entryAttach:
			m = &networkv1.AttachRequest{}
		case entryDetach:
			m = &networkv1.DetachRequest{}
		default:
			return size, fmt.Errorf("entry of unknown kind %q", kind)
		}
		if err := (protodelim.UnmarshalOptions{MaxSize: networksdk.MaxRequest}).UnmarshalFrom(in, m); err != nil {
			return size, err
		}
		if err := each(m); err != nil {
			return size, err
		}
		size = counted.read - int64(in.Buffered())
	}
}

// counter counts what is read.
type counter struct {
	io.Reader
	read int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read += int64(n)
	return n, err
}
