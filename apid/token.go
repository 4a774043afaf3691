package apid

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"

	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
)

// resumeVersion begins the tokens of this form. It changes whenever the order
// or the number of what a point counts does.
const resumeVersion = 1

// resumeToken writes a point so that any replica can read it: version, the
// numbers, and a checksum that tells a token from a typing error.
func resumeToken(p objects.Point) string {
	b := make([]byte, 0, 2*len(p)+5)
	b = append(b, resumeVersion)
	for _, n := range p {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseResumeToken(token string) (objects.Point, error) {
	wrong := func() (objects.Point, error) {
		return nil, validate.Field("resumeToken", "is not a token of a watch")
	}
	if len(token) > maxToken {
		return wrong()
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 5 || b[0] != resumeVersion {
		return wrong()
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return wrong()
	}
	p := make(objects.Point, 0, objects.PointSize)
	for body = body[1:]; len(body) > 0; {
		n, size := binary.Uvarint(body)
		if size <= 0 || len(p) == objects.PointSize {
			return wrong()
		}
		p = append(p, n)
		body = body[size:]
	}
	if len(p) != objects.PointSize {
		return wrong()
	}
	return p, nil
}
