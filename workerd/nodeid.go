package workerd

import (
	"crypto/rand"
	"math/big"
	"strings"
)

// idLength is the length of ids in base 36 that hold 128 random bits.
const idLength = 25

// newNodeID returns a new id, of the form that all ids in Muster have.
func newNodeID() string {
	var raw [16]byte
	// It never fails, says its documentation.
	_, _ = rand.Read(raw[:])
	text := new(big.Int).SetBytes(raw[:]).Text(36)
	return strings.Repeat("0", max(idLength-len(text), 0)) + text
}
