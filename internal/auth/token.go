package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"strings"
)

// An API token is
//
//	muster_<id>_<secret>
//
// with a secret of 130 random bits, so that a plain hash of it is safe to keep.
const tokenPrefix = "muster_"

// NewToken makes a token. It returns the id, the whole token, and the hash to store.
func NewToken() (id, token string, hash []byte) {
	id = strings.ToLower(rand.Text()[:12])
	token = tokenPrefix + id + "_" + strings.ToLower(rand.Text())
	return id, token, hashToken(token)
}

// TokenID returns the id of a token, or false if the text is not a token.
func TokenID(token string) (string, bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	id, secret, ok2 := strings.Cut(rest, "_")
	return id, ok && ok2 && len(id) == 12 && secret != "" && len(token) <= 128
}

// TokenMatches reports whether a hash is that of a token.
func TokenMatches(token string, hash []byte) bool {
	return subtle.ConstantTimeCompare(hashToken(token), hash) == 1
}

func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}
