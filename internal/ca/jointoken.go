package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strings"
)

// A join token is
//
//	MUSTER-1-<SHA-256 of the authority's certificate, hexadecimal>-<secret>
//
// so that a joining daemon can tell the cluster's authority from an impostor's before
// it shows the secret.
const joinPrefix = "MUSTER-1-"

var errJoinToken = errors.New("not a Muster join token: " + joinPrefix + "<digest>-<secret>")

// newSecret makes the secret part: 130 random bits.
func newSecret() string { return rand.Text() }

func joinToken(certificate []byte, secret string) string {
	sum := sha256.Sum256(certificate)
	return joinPrefix + hex.EncodeToString(sum[:]) + "-" + secret
}

// parseJoinToken returns the digest and the secret of a token.
func parseJoinToken(token string) (digest [sha256.Size]byte, secret string, err error) {
	rest, ok := strings.CutPrefix(token, joinPrefix)
	sum, secret, ok2 := strings.Cut(rest, "-")
	b, err := hex.DecodeString(sum)
	if !ok || !ok2 || err != nil || len(b) != sha256.Size || secret == "" || len(secret) > 64 {
		return digest, "", errJoinToken
	}
	return [sha256.Size]byte(b), secret, nil
}

// vouched returns the one of some authorities in PEM that a join token's digest names, or
// nil. The others came from the server that answered, and nothing vouches for them.
func vouched(authorities []byte, digest [sha256.Size]byte) []byte {
	for block, rest := pem.Decode(authorities); block != nil; block, rest = pem.Decode(rest) {
		if sha256.Sum256(block.Bytes) == digest {
			return certificatePEM(block.Bytes)
		}
	}
	return nil
}
