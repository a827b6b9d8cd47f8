package dev.valkyrie

/** Key and value pairs in the order they were given. Values of keys that end in `-bin` are bytes, all others text. It never changes. */
public class Metadata internal constructor(private val entries: List<Entry>) : AbstractList<Metadata.Entry>() {
    /** No entries. */
    public constructor() : this(emptyList())

    /** One key and its value. */
    public class Entry internal constructor(
        /** Lower-case ASCII. */
        public val key: String,
        internal val bytes: ByteArray,
    ) {
        /** Whether the value may be any bytes: the key ends in `-bin`. */
        public val isBinary: Boolean get() = key.endsWith("-bin")

        /** The value as text. */
        public val text: String get() = bytes.decodeToString()

        /** The value as bytes: a copy. */
        public fun toByteArray(): ByteArray = bytes.clone()

        override fun equals(other: Any?): Boolean = other is Entry && key == other.key && bytes.contentEquals(other.bytes)

        override fun hashCode(): Int = 31 * key.hashCode() + bytes.contentHashCode()

        override fun toString(): String = if (isBinary) "$key=${bytes.size} bytes" else "$key=$text"
    }

    override val size: Int get() = entries.size

    override fun get(index: Int): Entry = entries[index]

    /** The first value of that key, as text. */
    public operator fun get(key: String): String? = entries.find { it.key == key }?.text

    /** The first value of that key, as bytes. */
    public fun getBytes(key: String): ByteArray? = entries.find { it.key == key }?.toByteArray()

    /** Every value of that key, as text. */
    public fun getAll(key: String): List<String> = entries.filter { it.key == key }.map { it.text }

    /** These entries and one more. A key that is not legal is refused by the call: `INVALID_ARGUMENT`. */
    public fun with(key: String, value: String): Metadata = Metadata(entries + Entry(key, value.utf8()))

    /** These entries and one more. Only a key that ends in `-bin` may have bytes that are no text. */
    public fun with(key: String, value: ByteArray): Metadata = Metadata(entries + Entry(key, value.clone()))

    public companion object {
        internal val EMPTY = Metadata()

        /** Metadata of text. */
        @JvmStatic
        public fun of(vararg pairs: Pair<String, String>): Metadata =
            Metadata(pairs.map { (key, value) -> Entry(key, value.utf8()) })

        /** Metadata of one key. */
        @JvmStatic
        public fun of(key: String, value: String): Metadata = EMPTY.with(key, value)
    }
}
