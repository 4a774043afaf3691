// Package pause holds the program of the containers that keep the network namespaces of
// tasks, and speaks with it.
//
// Docker shares resolv.conf and the hosts file between the containers of one network
// namespace, and lets no client replace them: they are mounted. So the program writes them.
// It is built from program/pause.c by program/build.sh.
package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

var (
	//go:embed pause_amd64
	amd64 []byte
	//go:embed pause_arm64
	arm64 []byte
)

// Path is where the program is in its image.
const Path = "/pause"

// MaxFiles is how many bytes of resolv.conf and hosts together the program takes.
const MaxFiles = 1 << 17

// Program returns the program for a machine architecture as Go names it. It returns nil
// if there is none.
func Program(architecture string) []byte {
	switch architecture {
	case "amd64":
		return amd64
	case "arm64":
		return arm64
	}
	return nil
}

// Image returns the name of the image of a program, and the image's files. The name holds
// a checksum, so that each program has an image of its own.
func Image(program []byte) (name string, files []byte, err error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err = w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(Path, "/"), Mode: 0o755, Size: int64(len(program))}); err == nil {
		_, err = w.Write(program)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return "", nil, fmt.Errorf("archive the pause program: %w", err)
	}
	sum := sha256.Sum256(program)
	return "muster-pause:" + hex.EncodeToString(sum[:8]), archive.Bytes(), nil
}

// Record returns the bytes that make the program write the two files. It leaves one that is
// empty as it is. It answers with the token, as a line.
func Record(resolvConf, hosts, token string) ([]byte, error) {
	if len(resolvConf)+len(hosts) > MaxFiles {
		return nil, fmt.Errorf("resolv.conf and hosts have %d bytes; at most %d are allowed", len(resolvConf)+len(hosts), MaxFiles)
	}
	if i := strings.IndexAny(resolvConf+hosts+token, "\x00\x01\x02"); i >= 0 {
		return nil, errors.New("resolv.conf and hosts cannot hold control characters")
	}
	return []byte("\x00" + resolvConf + "\x01" + hosts + "\x01" + token + "\n\x02"), nil
}
