// A producer and a reader of bundles on Nimbus JOSE+JWT, written from FORMAT.md. See ../../../../README.md for the protocol.

import com.nimbusds.jose.*;
import com.nimbusds.jose.crypto.*;
import com.nimbusds.jose.jwk.*;
import com.nimbusds.jose.util.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

public final class Peer {
  static final JOSEObjectType OUTER = new JOSEObjectType("credbundle+jwe");
  static final JOSEObjectType INNER = new JOSEObjectType("credbundle+jwt");

  static JWEAlgorithm algOf(JWK key, boolean direct) {
    if (key instanceof RSAKey) return JWEAlgorithm.RSA_OAEP_256;
    if (key instanceof OctetSequenceKey) return JWEAlgorithm.A256KW;
    return direct ? JWEAlgorithm.ECDH_ES : JWEAlgorithm.ECDH_ES_A256KW;
  }

  static JWEEncrypter encrypter(JWK key) throws Exception {
    if (key instanceof RSAKey k) return new RSAEncrypter(k);
    if (key instanceof OctetSequenceKey k) return new AESEncrypter(k);
    if (key instanceof OctetKeyPair k) return new X25519Encrypter(k.toPublicJWK());
    return new ECDHEncrypter((ECKey) key);
  }

  static JWEDecrypter decrypter(JWK key) throws Exception {
    if (key instanceof RSAKey k) return new RSADecrypter(k);
    if (key instanceof OctetSequenceKey k) return new AESDecrypter(k);
    if (key instanceof OctetKeyPair k) return new X25519Decrypter(k);
    return new ECDHDecrypter((ECKey) key);
  }

  static JWK key(Map<String, Object> value) throws Exception {
    return JWK.parse(new HashMap<>(value));
  }

  static String seal(Map<String, Object> request) throws Exception {
    JWK signer = key(JSONObjectUtils.getJSONObject(request, "signer"));
    JWSAlgorithm alg = signer instanceof ECKey ? JWSAlgorithm.ES256 : JWSAlgorithm.EdDSA;
    JWSObject inner =
        new JWSObject(
            new JWSHeader.Builder(alg).type(INNER).keyID(signer.getKeyID()).build(),
            new Payload(JSONObjectUtils.toJSONString(JSONObjectUtils.getJSONObject(request, "claims"))));
    inner.sign(signer instanceof ECKey k ? new ECDSASigner(k) : new Ed25519Signer((OctetKeyPair) signer));
    Payload content = new Payload(inner.serialize());
    boolean direct = Boolean.TRUE.equals(request.get("direct"));
    Map<String, Object>[] entries = JSONObjectUtils.getJSONObjectArray(request, "recipients");
    String form = (String) request.get("form");
    if (form.equals("compact")) {
      JWK only = key(entries[0]);
      JWEHeader header =
          new JWEHeader.Builder(algOf(only, direct), EncryptionMethod.A256GCM)
              .type(OUTER).contentType("credbundle+jwt").keyID(only.getKeyID()).build();
      JWEObject jwe = new JWEObject(header, content);
      jwe.encrypt(encrypter(only));
      return jwe.serialize();
    }
    List<JWK> set = new ArrayList<>();
    for (Map<String, Object> entry : entries) {
      JWK k = key(entry);
      // MultiEncrypter chooses by JWK.alg and writes kid and alg to each recipient's own header.
      Map<String, Object> withAlg = new HashMap<>(k.toJSONObject());
      withAlg.put("alg", algOf(k, false).getName());
      set.add(JWK.parse(withAlg));
    }
    JWEHeader header =
        new JWEHeader.Builder(EncryptionMethod.A256GCM).type(OUTER).contentType("credbundle+jwt").build();
    JWEObjectJSON jwe = new JWEObjectJSON(header, content);
    jwe.encrypt(new MultiEncrypter(new JWKSet(set)));
    return jwe.serializeGeneral();
  }

  static String open(Map<String, Object> request) throws Exception {
    JWK mine = key(JSONObjectUtils.getJSONObject(request, "key"));
    JWK signer = key(JSONObjectUtils.getJSONObject(request, "signer"));
    String bundle = (String) request.get("bundle");
    Payload content;
    if (bundle.startsWith("{")) {
      JWEObjectJSON jwe = JWEObjectJSON.parse(bundle);
      jwe.decrypt(new MultiDecrypter(mine));
      content = jwe.getPayload();
    } else {
      JWEObject jwe = JWEObject.parse(bundle);
      jwe.decrypt(decrypter(mine));
      content = jwe.getPayload();
    }
    JWSObject inner = JWSObject.parse(content.toString());
    boolean good =
        inner.verify(
            signer instanceof ECKey k ? new ECDSAVerifier(k) : new Ed25519Verifier(((OctetKeyPair) signer).toPublicJWK()));
    if (!good) throw new IllegalStateException("signature");
    return inner.getPayload().toString();
  }

  public static void main(String[] args) throws Exception {
    String text = new String(System.in.readAllBytes(), StandardCharsets.UTF_8);
    Map<String, Object> request = JSONObjectUtils.parse(text);
    System.out.print(args[0].equals("seal") ? seal(request) : open(request));
  }
}
