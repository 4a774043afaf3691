package networks

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/atomicfile"
	"github.com/musterhq/muster/workerd/network"
)

// key is a node's public key for encrypted networks and the UDP port for their traffic. It
// has no Public if the node has no key.
type key struct {
	Public []byte `json:"publicKey,omitempty"`
	Port   uint32 `json:"port,omitempty"`
}

// readKey returns the key that a worker has kept.
func readKey(file string, log *zap.Logger) (k key) {
	if file == "" {
		return key{}
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("failed to read the node's public key; encrypted networks are cut off until a plugin has told it", zap.String("file", file), zap.Error(err))
		}
		return key{}
	}
	return k
}

// takeKey notes the key that plugins tell. While one of them does not run, it has none to
// tell, and the last one stays: other nodes would drop the connections otherwise. The
// caller holds n.mu.
func (n *Networks) takeKey(all []*network.Described) {
	var told key
	for _, d := range all {
		switch {
		case d.Plugin == nil && len(told.Public) == 0:
			told = n.key
		case d.Plugin != nil && len(d.PublicKey) > 0:
			told = key{Public: d.PublicKey, Port: d.EncryptedPort}
		}
	}
	if bytes.Equal(told.Public, n.key.Public) && told.Port == n.key.Port {
		return
	}
	n.key = told
	if n.cfg.KeyFile == "" {
		return
	}
	data, err := json.Marshal(told)
	if err == nil {
		err = atomicfile.Write(n.cfg.KeyFile, data)
	}
	if err != nil {
		n.log.Warn("failed to keep the node's public key", zap.String("file", n.cfg.KeyFile), zap.Error(err))
	}
}
